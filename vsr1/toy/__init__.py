"""The toy world: films, sentences, a corpus in the layout of a real one, and tiny models of the real architecture."""

from vsr1 import compat

compat.prepare()
