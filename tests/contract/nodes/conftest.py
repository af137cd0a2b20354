"""One cluster of two nodes for all tests of this folder."""

from collections.abc import Iterator

import pytest
import ray
from ray.cluster_utils import Cluster
from ray_clusters import joined_cluster


@pytest.fixture(scope="package")
def cluster() -> Iterator[Cluster]:
    """Two nodes of one CPU each, so that an actor that takes one is alone on its node; the driver is on one."""
    with joined_cluster(1, {"num_cpus": 1, "labels": {"pool": "far"}}) as cluster:
        yield cluster


@pytest.fixture(scope="package")
def nodes(cluster: Cluster) -> list[str]:
    """Ids of the two nodes."""
    return sorted(node["NodeID"] for node in ray.nodes() if node["Alive"])
