"""Which actor of a stage gets which CPU, GPU and memory, compared with what is there, before anything starts.

A plan follows from the configuration and the capacity alone. `Plan.check` never passes a stage whose totals exceed the
capacity, that has an actor larger than every node, or whose actors do not fit onto the nodes, the largest placed first.
What other jobs of a cluster have taken is not there.
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass, replace
from typing import Any, Literal

import ray
from ray._private.state import available_resources_per_node
from rich.table import Column, Table
from rich.text import Text

from pipelines.machine.resources import GIB, READER_CPUS, READERS, MachineError, cores, free_memory_gib, ray_address
from vsr1.config import Config
from vsr1.settings.parts import ActorResources

Stage = Literal["sft", "grpo", "eval", "demo"]

_UNITS = {"cpus": "CPUs", "gpus": "GPUs", "memory_gib": "GiB of memory"}
_TOLERANCE = 1e-6  # sums of fractions of a CPU are not exact
_ANSWER_LIMIT_S = 10.0
RETURN_LIMIT_S = 15.0  # in which a job that has ended gives its resources back


class PlanError(RuntimeError):
    """The stage does not fit; the message names each shortage and the keys to lower."""


@dataclass(frozen=True)
class Capacity:
    """What Ray can hand to actors on each node, besides the object store.

    Attributes:
        name: what the nodes are, for messages.
        grow: how to have more.
        is_shared: whether other jobs may give some back.
    """

    nodes: tuple[ActorResources, ...]
    name: str
    grow: str
    is_shared: bool = False

    def total(self, resource: str) -> float:
        return sum(float(getattr(node, resource)) for node in self.nodes)

    def largest(self, resource: str) -> float:
        return max(float(getattr(node, resource)) for node in self.nodes)


@dataclass(frozen=True)
class Role:
    """Equal actors.

    Attributes:
        number: of them, or of what there are `times` of them for.
        count_key: configuration key that sets `number`; empty where the design does.
        size_key: configuration section with the resources of one actor; empty where the design sets them.
        on_device: whether it computes on `model.device`.
    """

    name: str
    number: int
    each: ActorResources
    count_key: str = ""
    size_key: str = ""
    times: int = 1
    on_device: bool = False

    @property
    def count(self) -> int:
        return self.number * self.times

    def size(self, resource: str) -> float:
        return float(getattr(self.each, resource))

    def total(self, resource: str) -> float:
        return self.count * self.size(resource)

    def fix(self, resource: str, *, one: bool = False) -> str:
        """Return what to lower for fewer or smaller actors, or with `one` for smaller ones; empty if nothing can be."""
        keys = [f"{self.count_key}={self.number}"] if self.count_key and self.number > 1 and not one else []
        keys += [f"{self.size_key}.{resource}={self.size(resource):g}"] if self.size_key else []
        return f"lower {' or '.join(keys)}" if keys else ""


@dataclass(frozen=True)
class Plan:
    """The actors of a stage that are there at one time, and what there is for them."""

    title: str
    roles: tuple[Role, ...]
    available: Capacity
    on_gpus: bool = False

    def total(self, resource: str) -> float:
        return sum(role.total(resource) for role in self.roles)

    def lacks(self, resource: str) -> bool:
        return self.total(resource) > self.available.total(resource) + _TOLERANCE

    def shortages(self) -> list[str]:
        """Return one line for each thing that does not fit; none when everything does."""
        lines, there = [], self.available
        for resource, unit in _UNITS.items():
            node = there.largest(resource)
            for role in self.roles:
                if role.size(resource) > node + _TOLERANCE:
                    need = f"one {role.name} needs {role.size(resource):g} {unit}"
                    fix = role.fix(resource, one=True) or there.grow
                    lines.append(f"{need}, the largest node of {there.name} has {node:.4g}: {fix}")
            if self.lacks(resource):
                largest = sorted(self.roles, key=lambda role: role.total(resource), reverse=True)
                fixes = [fix for role in largest if role.total(resource) and (fix := role.fix(resource))]
                need = f"{self.title} needs {self.total(resource):.4g} {unit}"
                ways = "; or ".join([*fixes[:2], there.grow])
                lines.append(f"{need}, {there.name} has {there.total(resource):.4g}: {ways}")
        if self.on_gpus and not there.total("gpus"):
            lines.append(
                f"model.device=cuda needs a GPU, {there.name} has none: take model.device=cpu, or {there.grow}"
            )
        elif blind := [role for role in self.roles if self.on_gpus and role.on_device and not role.size("gpus")]:
            keys = " and ".join(f"{role.size_key}.gpus" for role in blind)
            lines.append(
                f"with model.device=cuda Ray shows no GPU to an actor that reserves none: raise {keys} above 0"
            )
        if not lines and (left := self._left_over()):
            sizes = ", ".join(
                f"{left.size(resource):g} {unit}" for resource, unit in _UNITS.items() if left.size(resource)
            )
            fix = left.fix("cpus") or there.grow
            lines.append(
                f"{there.name} has enough in all, but no node has room for another {left.name} ({sizes}): {fix}"
            )
        return lines

    def _left_over(self) -> Role | None:
        """Return a role of which an actor finds no node, placed in order of size on the fullest node that it fits."""
        free = [[float(getattr(node, resource)) for resource in _UNITS] for node in self.available.nodes]
        sizes = [[role.size(resource) for resource in _UNITS] for role in self.roles]
        for role, size in sorted(
            zip(self.roles, sizes, strict=True), key=lambda pair: [pair[1][1], *pair[1]], reverse=True
        ):
            for _ in range(role.count):
                fitting = [node for node in free if all(n <= a + _TOLERANCE for n, a in zip(size, node, strict=True))]
                if not fitting:
                    return role
                best = min(fitting, key=lambda node: [node[1], *node])
                best[:] = [there - need for there, need in zip(best, size, strict=True)]
        return None

    def check(self) -> None:
        """Compare what is needed with what there is.

        Raises:
            PlanError: something does not fit.
        """
        if lines := self.shortages():
            raise PlanError("\n".join(lines))

    def render(self) -> Table:
        """Return a table with a row for each role, one for the total, and one for what is there."""
        headings = ("number", "CPUs each", "GPUs each", "GiB each", "CPUs", "GPUs", "GiB")
        numbers = (Column(heading, justify="right") for heading in headings)
        table = Table("actor", *numbers, title=f"Placement of {self.title}")
        for role in self.roles:
            sizes = (f"{role.size(resource):g}" for resource in _UNITS)
            table.add_row(role.name, str(role.count), *sizes, *(f"{role.total(resource):.4g}" for resource in _UNITS))
        table.add_section()
        number = str(sum(role.count for role in self.roles))
        table.add_row("needed", number, "", "", "", *(f"{self.total(resource):.4g}" for resource in _UNITS))
        there = (Text(f"{self.available.total(resource):.4g}", "red" * self.lacks(resource)) for resource in _UNITS)
        table.add_row(self.available.name, "", "", "", "", *there)
        return table


def grpo_splits(config: Config) -> list[str]:
    """Return the splits that Stage 2 serves, each once."""
    splits = ["train"]
    if config.grpo.validate_every:
        splits.append(config.grpo.val_split)
    if config.grpo.evaluate_after:
        splits.append(config.eval.split)
    return list(dict.fromkeys(splits))


def placement_plan(config: Config, stage: Stage, available: Capacity) -> Plan:
    """Return the actors of a stage; of the demo, whose stages follow each other, those of the stage that needs most."""
    if stage == "demo":
        plans = [placement_plan(config, part, available) for part in ("sft", "grpo", "eval")]
        plan = max(plans, key=lambda plan: (bool(plan.shortages()), *(plan.total(resource) for resource in _UNITS)))
        return replace(plan, title=f"the demo (largest: {plan.title})")
    on_gpus = config.model.device == "cuda"
    if stage == "eval":
        return Plan("the evaluation", _services(config, 1, available), available, on_gpus)
    each, key = config.cluster.learner, f"{stage}.learner.ranks"
    ranks = config.grpo.learner.ranks if stage == "grpo" else config.sft.learner.ranks
    learner = Role("learner rank", ranks, each, key, "cluster.learner", on_device=True)
    if stage == "grpo":
        return Plan("Stage 2", (*_services(config, len(grpo_splits(config)), available), learner), available, on_gpus)
    roles = (
        replace(learner, each=each.model_copy(update={"memory_gib": 0.0})),  # Ray Train reserves none
        Role("clip reader", ranks, ActorResources(cpus=READER_CPUS, memory_gib=0), key, times=READERS),
        Role("clip stream", ranks, ActorResources(cpus=0, memory_gib=0), key),
    )
    return Plan("Stage 1", roles, available, on_gpus)


def check_placement(config: Config, stage: Stage) -> None:
    """Compare what a stage needs with what there is: without this, it would wait for ever for what is not there.

    What another job has taken may be on its way back, as after a stage that has just ended: a few seconds are given.

    Raises:
        PlanError: something does not fit.
    """
    deadline = time.monotonic() + RETURN_LIMIT_S
    while (plan := placement_plan(config, stage, capacity(config))).shortages() and plan.available.is_shared:
        if time.monotonic() > deadline:
            break
        time.sleep(1.0)
    plan.check()


def _services(config: Config, splits: int, available: Capacity) -> tuple[Role, ...]:
    """Return the actors around the learner; each node has a clip store for each split."""
    cluster, workers = config.cluster, config.rollout.workers
    return (
        Role(
            "rollout worker",
            workers + config.fleet.spares,
            cluster.rollout,
            "rollout.workers",
            "cluster.rollout",
            on_device=True,
        ),
        *(retrieval_roles(config, splits) if config.environment == "search" else ()),  # tools reserve nothing
        Role("reward worker", cluster.reward_workers, cluster.reward, "cluster.reward_workers", "cluster.reward"),
        clip_stores(config, splits, available),
    )


def retrieval_roles(config: Config, corpora: int) -> tuple[Role, Role]:
    """Return the shards and the services that search so many corpora."""
    cluster, retrieval = config.cluster, config.retrieval
    replicas = corpora * retrieval.replicas
    return (
        Role("retrieval shard", retrieval.shards, cluster.shard, "retrieval.shards", "cluster.shard", replicas),
        Role("retrieval service", corpora, cluster.retrieval, size_key="cluster.retrieval", on_device=True),
    )


def clip_stores(config: Config, corpora: int, available: Capacity) -> Role:
    """Return the stores of the clips of so many corpora, one of each a node."""
    clips = config.cluster.clips
    return Role("clip store", corpora, clips, size_key="cluster.clips", times=len(available.nodes))


def capacity(config: Config) -> Capacity:
    """Return what the living nodes have left of the Ray that a stage joins.

    Where a stage would start its own Ray, that is this machine; on one that it has started, it is alone and has all. A
    cluster that `cluster.address` names is joined.

    Raises:
        MachineError: no cluster answers there.
    """
    address = ray_address(config.cluster.address)
    if address == "local":
        nodes = _living_nodes() if ray.is_initialized() else (_this_machine(config),)
        grow = "raise cluster.num_cpus (logical CPUs), lower cluster.object_store_gib (memory) or use a larger machine"
        return Capacity(nodes, "this machine", grow)
    if not ray.is_initialized():
        join_cluster(address, logging_level="error")
    every, free = _living_nodes(), _living_nodes(free=True)
    taken = sum(node.cpus for node in every) - sum(node.cpus for node in free)
    if taken < _TOLERANCE:
        return Capacity(free, f"the cluster at {address}", "add nodes to the cluster")
    name = f"the cluster at {address}, of which other jobs have taken {taken:.4g} CPUs,"
    return Capacity(free, name, "wait for the other jobs, or add nodes to the cluster", is_shared=True)


def join_cluster(address: str, **options: Any) -> None:
    """Connect this process to a running Ray.

    Args:
        options: further ones of `ray.init`.

    Raises:
        MachineError: none answers at `address`.
    """
    host, _, port = address.rpartition(":")
    try:
        if host and port.isdecimal() and "://" not in host:  # Ray itself would try for more than three minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_LIMIT_S).close()
        ray.init(address=address, log_to_driver=False, **options)
    except OSError as error:
        state = f"no Ray answers at {address}, which cluster.address or RAY_ADDRESS names ({error})"
        raise MachineError(state, "start the cluster, correct the address, or unset it to run here") from error


def _this_machine(config: Config) -> ActorResources:
    import torch  # here, because it is slow to import, and a cluster is asked without it

    cluster, gpus = config.cluster, torch.cuda.device_count()
    memory_gib = max(0.0, free_memory_gib() - cluster.object_store_gib)
    return ActorResources(cpus=cluster.num_cpus or cores(), gpus=gpus, memory_gib=memory_gib)


def _living_nodes(*, free: bool = False) -> tuple[ActorResources, ...]:
    """Return the resources of each living node, or what is `free` of them now."""
    left = available_resources_per_node() if free else {}
    nodes = [left.get(node["NodeID"], {}) if free else node["Resources"] for node in ray.nodes() if node["Alive"]]
    return tuple(
        ActorResources(cpus=node.get("CPU", 0), gpus=node.get("GPU", 0), memory_gib=node.get("memory", 0) / GIB)
        for node in nodes
    )
