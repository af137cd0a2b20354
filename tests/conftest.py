"""Fixtures shared by all tiers."""

from collections.abc import Iterator

import pytest
import ray


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One small local Ray of our own for the whole session; never joins a cluster that is already running."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, namespace="vsr1-tests", log_to_driver=False)
    yield
    ray.shutdown()
