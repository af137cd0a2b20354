"""Ray clusters of several nodes on this machine, for tests of what happens between them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.cluster_utils import Cluster

STORE = 80 * 2**20  # bytes of a node's object store


@contextmanager
def joined_cluster(cpus: int, *nodes: dict[str, Any]) -> Iterator[Cluster]:
    """Have a cluster that this process is the driver of.

    Args:
        cpus: of the head.
        nodes: options of `Cluster.add_node` of each other node.
    """
    ray.shutdown()  # the Ray that other tests share
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": cpus, "object_store_memory": STORE})
    for node in nodes:
        cluster.add_node(object_store_memory=STORE, **node)
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
