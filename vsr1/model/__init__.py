"""The policy with its refinement heads, its forward passes in Hugging Face, and the frozen embedder."""

from vsr1 import compat

compat.prepare()
