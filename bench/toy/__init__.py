"""The toy benchmark: the models it starts from, their training, its arms over seeds, and their tables."""

import vsr1  # noqa: F401  # lets transformers be imported
