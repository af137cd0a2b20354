"""The video search agent as a library: model, engine, agent loop, rewards, losses, formats and metrics.

Nothing in this package imports Ray; the Ray actors in `actors` and the jobs in `pipelines` are built on it.
"""

__version__ = "0.1.0"
