"""Which actor of a stage gets which CPU, GPU and memory, compared with what is there, before anything starts.

A plan follows from the configuration and the capacity alone. `Plan.check` never passes a stage whose totals exceed the
capacity, that has an actor larger than every node, or whose actors do not fit onto the nodes, the largest placed first.
What other jobs of a cluster have taken is not there.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from rich.console import Group
from rich.table import Column, Table
from rich.text import Text

from pipelines.machine.memory import (
    ANSWERER,
    CAPTIONER,
    CHAT_ENGINE,
    EMBEDDER,
    ENGINE,
    LEARNER,
    RETRIEVAL,
    SHARD,
    cached_requests,
    gpu_memory,
    too_small,
    unsized,
)
from pipelines.machine.nodes import TOLERANCE, Capacity, capacity
from pipelines.machine.packing import Gpu, has_labels, place, rooms_of
from pipelines.machine.resources import READER_CPUS, READERS
from vsr1.config import Config
from vsr1.environments.registry import environment_of
from vsr1.settings.parts import ActorResources, PlacedResources

Stage = Literal["sft", "grpo", "eval", "demo"]

_UNITS = {"cpus": "CPUs", "gpus": "GPUs", "memory_gib": "GiB of memory"}
RECKONING = 1.15  # memory of a GPU is reckoned: what is beyond a GPU by no more than this is shown, not refused
RETURN_LIMIT_S = 15.0  # in which a job that has ended gives its resources back


class PlanError(RuntimeError):
    """The stage does not fit; the message names each shortage and the keys to lower."""


@dataclass(frozen=True)
class Role:
    """Equal actors.

    Attributes:
        number: of them, or of what there are `times` of them for.
        count_key: configuration key that sets `number`; empty where the design does.
        others: actors that the key counts too, and another role has.
        size_key: configuration section with the resources of one actor; empty where the design sets them.
        on_device: whether it computes on `model.device`.
        memory: of a GPU that one takes, in GiB by what it is for; empty where it is not reckoned.
    """

    name: str
    number: int
    each: ActorResources
    count_key: str = ""
    size_key: str = ""
    times: int = 1
    others: int = 0
    on_device: bool = False
    memory: Mapping[str, float] = field(default_factory=dict)

    @property
    def need(self) -> PlacedResources:
        """What one actor needs, and where; one that says nothing of it may be anywhere."""
        return self.each if isinstance(self.each, PlacedResources) else PlacedResources(**self.each.model_dump())

    @property
    def count(self) -> int:
        return self.number * self.times

    def size(self, resource: str) -> float:
        return float(getattr(self.each, resource))

    def total(self, resource: str) -> float:
        return self.count * self.size(resource)

    def fix(self, resource: str, *, one: bool = False) -> str:
        """Return what to lower for fewer or smaller actors, or with `one` for smaller ones; empty if nothing can be."""
        number = self.number + self.others
        keys = [f"{self.count_key}={number}"] if self.count_key and number > 1 and not one else []
        keys += [f"{self.size_key}.{resource}={self.size(resource):g}"] if self.size_key else []
        return f"lower {' or '.join(keys)}" if keys else ""


@dataclass(frozen=True)
class Plan:
    """The actors of a stage that are there at one time, and what there is for them."""

    title: str
    roles: tuple[Role, ...]
    available: Capacity
    on_gpus: bool = False
    caption: str = ""  # below the table of memory
    faults: tuple[str, ...] = ()  # of engines, wherever they are

    def total(self, resource: str) -> float:
        return sum(role.total(resource) for role in self.roles)

    def lacks(self, resource: str) -> bool:
        return self.total(resource) > self.available.total(resource) + TOLERANCE

    def shortages(self) -> list[str]:
        """Return one line for each thing that does not fit; none when everything does."""
        lines, there = list(self.faults), self.available
        for resource, unit in _UNITS.items():
            for role in self.roles:
                allowed = [one for one in there.nodes if has_labels(one, role.need.labels)]
                node = max((float(getattr(one, resource)) for one in allowed), default=0.0)
                if resource == "cpus" and not allowed:
                    lines.append(
                        f"no node of {there.name} has the labels {role.need.labels} of a {role.name}: start nodes with "
                        f"`ray start --labels`, or change {role.size_key}.labels"
                    )
                elif allowed and role.size(resource) > node + TOLERANCE:
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
        if not lines:
            left, gpus = self.packed()
            if left:
                sizes = ", ".join(f"{left.size(name):g} {unit}" for name, unit in _UNITS.items() if left.size(name))
                where = {"strict_pack": " next to the others", "strict_spread": " on a node of its own"}
                fix = left.fix("cpus") or there.grow
                lines.append(
                    f"{there.name} has enough in all, but no node has room for another {left.name} ({sizes})"
                    f"{where.get(left.need.strategy, '')}: {fix}"
                )
            lines += sorted({_overfull(gpu) for gpu in gpus if _is_overfull(gpu)})
            if any(gpu.actors[LEARNER] > 1 for gpu in gpus):
                lines.append(
                    "two learner ranks would share a GPU, which NCCL refuses: raise cluster.learner.gpus above 0.5, or "
                    "in Stage 2 cluster.rollout.gpus, so that an engine and one rank fill a GPU"
                )
        return lines

    def packed(self) -> tuple[Role | None, list[Gpu]]:
        """Place every actor; return a role of which one finds no node, and the GPUs.

        What may go to few nodes and is large goes first, each to the fullest node that it fits.
        """
        rooms = rooms_of(self.available.nodes)
        for role in sorted(
            self.roles, key=lambda role: (bool(role.need.labels), *map(role.size, ("gpus", *_UNITS))), reverse=True
        ):
            if not place(rooms, role.name, role.need, role.count, sum(role.memory.values())):
                return role, []
        return None, [gpu for room in rooms for gpu in room.gpus]

    def check(self) -> None:
        """Compare what is needed with what there is.

        Raises:
            PlanError: something does not fit.
        """
        if lines := self.shortages():
            raise PlanError("\n".join(lines))

    def render(self) -> Group:
        """Return the table of what is reserved and, where it is reckoned, that of the memory of a GPU."""
        return Group(self._reserved(), *([self._memory()] if any(role.memory for role in self.roles) else []))

    def _memory(self) -> Table:
        """Return a table with a column for each role on a GPU and a row for what its memory is for."""
        roles = [role for role in self.roles if role.memory]
        columns = (Column(role.name, justify="right") for role in roles)
        table = Table("GiB each", *columns, title="memory of a GPU (reckoned)", caption=self.caption)
        for name in dict.fromkeys(name for role in roles for name in role.memory):
            table.add_row(name, *(f"{role.memory[name]:.1f}" if name in role.memory else "" for role in roles))
        table.add_section()
        table.add_row("all", *(f"{sum(role.memory.values()):.1f}" for role in roles))
        return table

    def _reserved(self) -> Table:
        """Return a table with a row for each role, one for the total, and one for what is there."""
        headings = ("number", "CPUs each", "GPUs each", "GiB each", "CPUs", "GPUs", "GiB")
        numbers = (Column(heading, justify="right") for heading in headings)
        table = Table("actor", *numbers, title=f"Placement of {self.title} on {self.available.name}")
        for role in self.roles:
            sizes = (f"{role.size(resource):g}" for resource in _UNITS)
            table.add_row(role.name, str(role.count), *sizes, *(f"{role.total(resource):.4g}" for resource in _UNITS))
        table.add_section()
        number = str(sum(role.count for role in self.roles))
        table.add_row("needed", number, "", "", "", *(f"{self.total(resource):.4g}" for resource in _UNITS))
        there = (Text(f"{self.available.total(resource):.4g}", "red" * self.lacks(resource)) for resource in _UNITS)
        table.add_row("there", "", "", "", "", *there)
        return table


def _is_overfull(gpu: Gpu) -> bool:
    return gpu.size_gib is not None and sum(gpu.taken_gib.values()) > RECKONING * gpu.size_gib


def _overfull(gpu: Gpu) -> str:
    parts = " + ".join(f"{gib:.0f} of {name}" for name, gib in gpu.taken_gib.items() if gib)
    keys = {
        LEARNER: "learner.micro_tokens of the stage, or raise its ranks or learner.gradient_checkpointing",
        ENGINE: "rollout.engine.gpu_memory_utilization",
        RETRIEVAL: "the shares of a GPU (cluster.*.gpus) that let it share this one",
        EMBEDDER: "retrieval.embedders",
        SHARD: "what a shard holds by more retrieval.shards",
        **dict.fromkeys((CAPTIONER, ANSWERER), f"{CHAT_ENGINE}.gpu_memory_utilization or {CHAT_ENGINE}.kv_cache_gib"),
    }
    ways = "; ".join(dict.fromkeys(way for name, way in keys.items() if gpu.taken_gib.get(name)))
    return f"a GPU of {gpu.size_gib:g} GiB would hold {parts} GiB: lower {ways}"


def grpo_splits(config: Config) -> list[str]:
    """Return the splits that Stage 2 serves, each once."""
    splits = ["train"]
    if config.grpo.validate_every:
        splits.append(config.grpo.val_split)
    if config.grpo.evaluate_before or config.grpo.evaluate_after:
        splits.append(config.eval.split)
    return list(dict.fromkeys(splits))


def placement_plan(config: Config, stage: Stage, available: Capacity) -> Plan:
    """Return the actors of a stage; of the demo, whose stages follow each other, those of the stage that needs most."""
    if stage == "demo":
        plans = [placement_plan(config, part, available) for part in ("sft", "grpo", "eval")]
        plan = max(plans, key=lambda plan: (bool(plan.shortages()), *(plan.total(resource) for resource in _UNITS)))
        return replace(plan, title=f"the demo (largest: {plan.title})")
    each, key = config.cluster.learner, f"{stage}.learner.ranks"
    ranks = config.grpo.learner.ranks if stage == "grpo" else config.sft.learner.ranks
    learner = Role(LEARNER, ranks, each, key, "cluster.learner", on_device=True)
    titles = {"sft": "Stage 1", "grpo": "Stage 2", "eval": "the evaluation"}
    if stage == "sft":
        roles: tuple[Role, ...] = (
            replace(learner, each=each.model_copy(update={"memory_gib": 0.0})),  # Ray Train reserves none
            Role("clip reader", ranks, ActorResources(cpus=READER_CPUS, memory_gib=0), key, times=READERS),
            Role("clip stream", ranks, ActorResources(cpus=0, memory_gib=0), key),
        )
    else:
        splits = len(grpo_splits(config)) if stage == "grpo" else 1
        roles = (*_services(config, splits, available), *([learner] if stage == "grpo" else []))
    sizes = [node.gpu_memory_gib for node in available.nodes if node.gpus and node.gpu_memory_gib]
    memory = gpu_memory(config, stage, min(sizes)) if sizes else {}
    cached = cached_requests(config, memory).items()
    caption = "; ".join(f"the cache of a {role} holds {count} requests of its max_model_len" for role, count in cached)
    roles = tuple(replace(role, memory=memory.get(role.name, {})) for role in roles)
    faults = (*too_small(config, memory), *(unsized(config) if stage == "grpo" else []))
    return Plan(titles[stage], roles, available, config.model.device == "cuda", caption, faults)


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
            ENGINE,
            workers + config.fleet.spares,
            cluster.rollout,
            "rollout.workers",
            "cluster.rollout",
            on_device=True,
        ),
        *(retrieval_roles(config, splits) if environment_of(config).has_corpus else ()),
        *(pool_roles(config, splits) if environment_of(config).has_films else ()),
        Role("reward worker", cluster.reward_workers, cluster.reward, "cluster.reward_workers", "cluster.reward"),
        clip_stores(config, splits, available),
    )


def retrieval_roles(config: Config, corpora: int) -> tuple[Role, ...]:
    """Return the shards, the services that search so many corpora, and their further embedders."""
    cluster, retrieval = config.cluster, config.retrieval
    replicas, size_key, key = corpora * retrieval.replicas, "cluster.retrieval", "retrieval.embedders"
    more = retrieval.embedders - 1
    return (
        Role(SHARD, retrieval.shards, cluster.shard, "retrieval.shards", "cluster.shard", replicas),
        Role(RETRIEVAL, corpora, cluster.retrieval, size_key=size_key, on_device=True),
        *([Role(EMBEDDER, more, cluster.retrieval, key, size_key, corpora, 1, on_device=True)] if more else []),
    )


def pool_roles(config: Config, sets: int) -> tuple[Role, Role]:
    """Return the actors that describe nodes of so many sets of films, and those that answer questions about them."""
    pools = config.navigate.pools
    each = ActorResources(cpus=0, gpus=pools.gpus(config.model.device), memory_gib=0)
    return (
        Role(CAPTIONER, pools.captioners, each, "navigate.pools.captioners", times=sets),
        Role(ANSWERER, pools.answerers, each, "navigate.pools.answerers", times=sets),
    )


def clip_stores(config: Config, corpora: int, available: Capacity) -> Role:
    """Return the stores of the clips of so many corpora, one of each a node."""
    clips = config.cluster.clips
    return Role("clip store", corpora, clips, size_key="cluster.clips", times=len(available.nodes))
