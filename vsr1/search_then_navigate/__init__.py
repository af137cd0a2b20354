"""The environment of both: a search in which long videos are navigated before they are judged."""
