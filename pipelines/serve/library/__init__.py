"""The corpora that are searched, and the videos that users add."""
