"""The toy world: films, sentences, and a corpus in the layout of a real one."""
