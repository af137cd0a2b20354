"""The environments by the name that `environment` has in a configuration."""

from __future__ import annotations

from vsr1.config import Config
from vsr1.environments.long_searches import LONG_SEARCHES
from vsr1.environments.navigation import NAVIGATION
from vsr1.environments.searches import SEARCHES
from vsr1.environments.spec import EnvironmentSpec

ENVIRONMENTS: dict[str, EnvironmentSpec] = {
    "search": SEARCHES, "navigate": NAVIGATION, "search_then_navigate": LONG_SEARCHES,
}  # fmt: skip


def environment_of(config: Config) -> EnvironmentSpec:
    """Return the environment of a run."""
    return ENVIRONMENTS[config.environment]
