"""Which actor of the GRPO job gets which CPU, GPU and memory, compared with what is there, before anything starts.

`placement_plan` is a pure function of the configuration. `Plan.check` never passes a job whose totals exceed the
capacity or that has an actor larger than every node; it does not pack actors onto nodes, which is Ray's work.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass

import ray
import torch
from rich.table import Table

from pipelines.machine.resources import GIB, available_memory_gib, cores
from vsr1.config import Config
from vsr1.settings.parts import ActorResources

RESOURCES = ("cpus", "gpus", "memory_gib")
_UNITS = {"cpus": "CPUs", "gpus": "GPUs", "memory_gib": "GiB of memory"}
# Sums of fractions of a CPU are not exact.
_TOLERANCE = 1e-6
_ANSWER_LIMIT_S = 10.0


class PlanError(RuntimeError):
    """The job does not fit; the message names each shortage and the keys to lower."""


@dataclass(frozen=True)
class NodeCapacity:
    """What Ray can hand to actors on one node; memory in GiB, the object store not included."""

    cpus: float
    gpus: float
    memory_gib: float


@dataclass(frozen=True)
class Capacity:
    """The nodes a job may use and, for messages, what they are and how to have more."""

    nodes: tuple[NodeCapacity, ...]
    name: str
    grow: str

    def total(self, resource: str) -> float:
        return sum(float(getattr(node, resource)) for node in self.nodes)

    def largest(self, resource: str) -> float:
        return max(float(getattr(node, resource)) for node in self.nodes)


@dataclass(frozen=True)
class Role:
    """`count` equal actors.

    Attributes:
        count_key: configuration key that sets the count; empty where the number is fixed by the design.
        size_key: configuration section with the resources of one actor.
    """

    name: str
    count: int
    count_key: str
    size_key: str
    each: ActorResources

    def total(self, resource: str) -> float:
        return self.count * float(getattr(self.each, resource))

    def lower(self, resource: str) -> str:
        """The keys that make this role smaller in one resource."""
        size = f"{self.size_key}.{resource}={getattr(self.each, resource):g}"
        return f"{self.count_key}={self.count} or {size}" if self.count_key and self.count > 1 else size


@dataclass(frozen=True)
class Plan:
    roles: tuple[Role, ...]
    available: Capacity | None = None

    def total(self, resource: str) -> float:
        return sum(role.total(resource) for role in self.roles)

    def shortages(self) -> list[str]:
        """One line for each thing that does not fit; empty when everything does."""
        return [line for resource in RESOURCES for line in self._shortages_of(resource)]

    def _shortages_of(self, resource: str) -> list[str]:
        if self.available is None:
            raise PlanError("this plan has no capacity to compare with: pass `available` to placement_plan")
        unit = _UNITS[resource]
        lines = []
        for role in self.roles:
            each = float(getattr(role.each, resource))
            if each > self.available.largest(resource) + _TOLERANCE:
                lines.append(
                    f"one {role.name} actor needs {each:g} {unit}, the largest node of {self.available.name} has "
                    f"{self.available.largest(resource):.4g}: lower {role.size_key}.{resource}={each:g}"
                )
        needed, there = self.total(resource), self.available.total(resource)
        if needed > there + _TOLERANCE:
            largest = sorted(self.roles, key=lambda role: role.total(resource), reverse=True)[:2]
            keys = "; or ".join(role.lower(resource) for role in largest if role.total(resource) > 0)
            lines.append(
                f"the job needs {needed:.4g} {unit}, {self.available.name} has {there:.4g}: "
                f"lower {keys}; or {self.available.grow}"
            )
        return lines

    def check(self) -> None:
        """Raises:
        PlanError: something does not fit.
        """
        lines = self.shortages()
        if lines:
            raise PlanError("\n".join(lines))

    def render(self) -> Table:
        """A row for each role, the total and, where it is known, what is there."""
        table = Table(title="Placement of the GRPO job")
        table.add_column("actor")
        for heading in ("number", "CPUs each", "GPUs each", "GiB each", "CPUs", "GPUs", "GiB"):
            table.add_column(heading, justify="right")
        for role in self.roles:
            each = [f"{getattr(role.each, resource):g}" for resource in RESOURCES]
            table.add_row(role.name, str(role.count), *each, *(f"{role.total(item):.4g}" for item in RESOURCES))
        table.add_section()
        table.add_row(
            "needed",
            str(sum(role.count for role in self.roles)),
            *[""] * len(RESOURCES),
            *(f"{self.total(item):.4g}" for item in RESOURCES),
        )
        if self.available is not None:
            cells = (self._cell(item, self.available) for item in RESOURCES)
            table.add_row(self.available.name, "", *[""] * len(RESOURCES), *cells)
        return table

    def _cell(self, resource: str, available: Capacity) -> str:
        text = f"{available.total(resource):.4g}"
        return text if not self._shortages_of(resource) else f"[bold red]{text}[/]"


def grpo_splits(config: Config) -> list[str]:
    """The splits that a GRPO job serves, each once."""
    splits = ["train"]
    if config.grpo.validate_every:
        splits.append(config.grpo.val_split)
    if config.grpo.evaluate_after:
        splits.append(config.eval.split)
    return list(dict.fromkeys(splits))


def placement_plan(config: Config, available: Capacity | None = None) -> Plan:
    """The actors of the GRPO job. A clip store is one a node and split; without `available`, one node is assumed."""
    cluster = config.cluster
    splits = len(grpo_splits(config))
    nodes = len(available.nodes) if available is not None else 1
    return Plan(
        roles=(
            Role("rollout worker", config.rollout.workers, "rollout.workers", "cluster.rollout", cluster.rollout),
            Role("learner rank", config.grpo.learner.ranks, "grpo.learner.ranks", "cluster.learner", cluster.learner),
            Role(
                "retrieval shard",
                config.retrieval.shards * config.retrieval.replicas * splits,
                "retrieval.shards",
                "cluster.shard",
                cluster.shard,
            ),
            Role("retrieval service", splits, "", "cluster.retrieval", cluster.retrieval),
            Role("reward worker", cluster.reward_workers, "cluster.reward_workers", "cluster.reward", cluster.reward),
            Role("clip store", nodes * splits, "", "cluster.clips", cluster.clips),
        ),
        available=available,
    )


def local_capacity(config: Config) -> Capacity:
    """What a Ray started on this machine by this configuration would hand out."""
    num_cpus = config.cluster.num_cpus
    memory_gib = max(0.0, available_memory_gib() - config.cluster.object_store_gib)
    node = NodeCapacity(
        cpus=num_cpus if num_cpus is not None else float(cores()),
        gpus=float(torch.cuda.device_count()),
        memory_gib=memory_gib,
    )
    return Capacity(
        nodes=(node,),
        name="this machine",
        grow="raise cluster.num_cpus (logical CPUs), lower cluster.object_store_gib (memory) or use a larger machine",
    )


def cluster_capacity(address: str) -> Capacity:
    """What the living nodes of a running cluster have, whether or not other jobs use some of it.

    Uses the present connection when there is one, else connects to `address` and disconnects.

    Raises:
        ConnectionError: no cluster answers at `address`.
    """
    connected_here = not ray.is_initialized()
    if connected_here:
        _require_answer(address)
        ray.init(address=address, log_to_driver=False)
    try:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    finally:
        if connected_here:
            ray.shutdown()
    return Capacity(
        nodes=tuple(
            NodeCapacity(node.get("CPU", 0.0), node.get("GPU", 0.0), node.get("memory", 0.0) / GIB) for node in nodes
        ),
        name=f"the cluster at {address}",
        grow="add nodes to the cluster",
    )


def _require_answer(address: str) -> None:
    """Ray itself tries an address where nothing listens for more than three minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWER_LIMIT_S).close()
    except OSError as error:
        raise ConnectionError(
            f"cluster.address={address}: nothing answers there ({error}); start the cluster or correct the address"
        ) from error


def capacity(config: Config) -> Capacity:
    """Of the cluster that is connected or that `cluster.address` names, else of this machine."""
    if config.cluster.address or ray.is_initialized():
        return cluster_capacity(config.cluster.address or "the address that it was found at")
    return local_capacity(config)
