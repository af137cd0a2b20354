"""The toy benchmark: the models it starts from, its arms over seeds, and their tables."""
