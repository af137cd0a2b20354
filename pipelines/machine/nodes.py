"""The nodes that a stage may have: those that are declared, those of a cluster, or this machine.

Ray is imported where it is asked: a dry run on declared nodes does without.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Any

from pipelines.machine.resources import GIB, MachineError, free_memory_gib, ray_address
from vsr1.config import Config
from vsr1.footprint import GPU_GIB
from vsr1.settings.parts import ClusterConfig, Node, cores

TOLERANCE = 1e-6  # sums of fractions of a CPU are not exact
_ANSWER_LIMIT_S = 10.0


@dataclass(frozen=True)
class Capacity:
    """What Ray can hand to actors on each node, besides the object store.

    Attributes:
        name: what the nodes are, for messages.
        grow: how to have more.
        is_shared: whether other jobs may give some back.
    """

    nodes: tuple[Node, ...]
    name: str
    grow: str
    is_shared: bool = False

    def total(self, resource: str) -> float:
        return sum(float(getattr(node, resource)) for node in self.nodes)

    def largest(self, resource: str) -> float:
        return max(float(getattr(node, resource)) for node in self.nodes)


def planned_capacity(config: Config) -> Capacity:
    """Return the nodes that `cluster.nodes` declares, else those of `capacity`."""
    groups = config.cluster.nodes.values()
    nodes = tuple(group for group in groups for _ in range(group.count))
    return Capacity(nodes, "what cluster.nodes declares", "declare more nodes") if nodes else capacity(config)


def capacity(config: Config) -> Capacity:
    """Return what the living nodes have left of the Ray that a stage joins, and what an autoscaler may add.

    Where a stage would start its own Ray, that is this machine; on one that it has started, it is alone and has all. A
    cluster that `cluster.address` names is joined.

    Raises:
        MachineError: no cluster answers there.
    """
    import ray

    address = ray_address(config.cluster.address)
    if address == "local":
        nodes = _living_nodes() if ray.is_initialized() else (_this_machine(config),)
        grow = "raise cluster.num_cpus (logical CPUs), lower cluster.object_store_gib (memory) or use a larger machine"
        return Capacity(nodes, "this machine", grow)
    if not ray.is_initialized():
        join_cluster(address, logging_level="error")
    every, free = _living_nodes(), _living_nodes(free=True)
    taken = sum(node.cpus for node in every) - sum(node.cpus for node in free)
    coming = _coming_nodes(config.cluster, every)
    name = f"the cluster at {address}" + f" with {len(coming)} nodes that may come" * bool(coming)
    if taken < TOLERANCE:
        return Capacity(free + coming, name, "add nodes to the cluster")
    name = f"{name}, of which other jobs have taken {taken:.4g} CPUs,"
    return Capacity(free + coming, name, "wait for the other jobs, or add nodes to the cluster", is_shared=True)


def join_cluster(address: str, **options: Any) -> None:
    """Connect this process to a running Ray.

    Args:
        options: further ones of `ray.init`.

    Raises:
        MachineError: none answers at `address`.
    """
    import ray

    host, _, port = address.rpartition(":")
    try:
        if host and port.isdecimal() and "://" not in host:  # Ray itself would try for more than three minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_LIMIT_S).close()
        ray.init(address=address, log_to_driver=False, **options)
    except OSError as error:
        state = f"no Ray answers at {address}, which cluster.address or RAY_ADDRESS names ({error})"
        raise MachineError(state, "start the cluster, correct the address, or unset it to run here") from error


def _this_machine(config: Config) -> Node:
    import torch  # here, because it is slow to import, and a cluster is asked without it

    cluster, gpus = config.cluster, torch.cuda.device_count()
    memory_gib = max(0.0, free_memory_gib() - cluster.object_store_gib)
    gpu_gib = torch.cuda.get_device_properties(0).total_memory / GIB if gpus else None
    return Node(cpus=cluster.num_cpus or cores(), gpus=gpus, memory_gib=memory_gib, gpu_memory_gib=gpu_gib)


def _living_nodes(*, free: bool = False) -> tuple[Node, ...]:
    """Return the resources of each living node, or what is `free` of them now."""
    import ray
    from ray._private.state import available_resources_per_node

    left = available_resources_per_node() if free else {}
    return tuple(
        _node(left.get(node["NodeID"], {}) if free else node["Resources"], node["Resources"], node.get("Labels") or {})
        for node in ray.nodes()
        if node["Alive"]
    )


def _node(left: dict[str, float], whole: dict[str, float], labels: dict[str, str]) -> Node:
    kinds = [name.removeprefix("accelerator_type:") for name in whole if name.startswith("accelerator_type:")]
    return Node(
        cpus=left.get("CPU", 0),
        gpus=left.get("GPU", 0),
        memory_gib=left.get("memory", 0) / GIB,
        labels=labels,
        gpu_memory_gib=next((gib for part, gib in GPU_GIB.items() if part in "".join(kinds)), None),
    )


def _coming_nodes(cluster: ClusterConfig, living: tuple[Node, ...]) -> tuple[Node, ...]:
    """Return the nodes of autoscaled groups that are not there yet."""
    coming: list[Node] = []
    for group in cluster.nodes.values():
        if group.autoscaled:
            there = [node for node in living if group.labels.items() <= node.labels.items()]
            coming += [group] * (group.count - len(there))
    return tuple(coming)
