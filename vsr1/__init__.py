"""The video search agent as a library: model, engine, agent loop, rewards, losses, formats and metrics.

Nothing in this package imports Ray; the Ray actors in `actors` and the jobs in `pipelines` are built on it.
"""

from vsr1.compat import hide_broken_packages

__version__ = "0.1.0"

hide_broken_packages()
