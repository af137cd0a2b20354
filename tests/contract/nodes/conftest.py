"""One cluster of two nodes for all tests of this folder."""

from collections.abc import Iterator

import pytest
import ray
from ray.cluster_utils import Cluster


@pytest.fixture(scope="package")
def cluster() -> Iterator[Cluster]:
    """Two nodes of one CPU each, so that an actor that takes one is alone on its node; the driver is on one."""
    ray.shutdown()  # the Ray that other tests share
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80 * 2**20})
    cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20, labels={"pool": "far"})
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(scope="package")
def nodes(cluster: Cluster) -> list[str]:
    """Ids of the two nodes."""
    return sorted(node["NodeID"] for node in ray.nodes() if node["Alive"])
