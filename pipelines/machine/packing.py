"""Onto which nodes and GPUs the actors of a stage fit, by their shares and labels: pure, and the same for equal input.

A GPU is one thing: two actors of 0.6 do not share two GPUs between them, and one of 2 takes two whole ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from operator import attrgetter

from pipelines.machine.nodes import TOLERANCE
from vsr1.settings.parts import Node, PlacedResources


@dataclass
class Gpu:
    """One GPU: what is free of it, its actors by role, and the memory that these take, where that is known."""

    free: float
    size_gib: float | None
    actors: Counter[str] = field(default_factory=Counter)
    taken_gib: dict[str, float] = field(default_factory=dict)


@dataclass
class Room:
    """What is left of a node."""

    node: Node
    cpus: float
    memory_gib: float
    gpus: list[Gpu]

    def take(self, name: str, need: PlacedResources, gpu_gib: float = 0.0) -> bool:
        """Take what an actor needs and return whether it was there.

        Args:
            name: of its role.
            gpu_gib: memory that it takes of a GPU.
        """
        share = need.gpus if need.gpus <= 1 else 1.0
        count = 0 if not need.gpus else max(1, round(need.gpus))
        fitting = sorted((gpu for gpu in self.gpus if gpu.free >= share - TOLERANCE), key=lambda gpu: gpu.free)[:count]
        if len(fitting) < count or self.cpus < need.cpus - TOLERANCE or self.memory_gib < need.memory_gib - TOLERANCE:
            return False
        self.cpus, self.memory_gib = self.cpus - need.cpus, self.memory_gib - need.memory_gib
        for gpu in fitting:
            gpu.free -= share
            gpu.actors[name] += 1
            gpu.taken_gib[name] = gpu.taken_gib.get(name, 0.0) + gpu_gib
        return True

    @property
    def order(self) -> tuple[float, ...]:
        """What the next actor is put by: the fullest node first, those without GPUs before all."""
        return sum(gpu.free for gpu in self.gpus), self.cpus, self.memory_gib


def rooms_of(nodes: Sequence[Node]) -> list[Room]:
    """Return the nodes with nothing taken; a part of a GPU is what others have left of one."""
    rooms = []
    for node in nodes:
        whole, part = int(node.gpus + TOLERANCE), node.gpus % 1
        shares = [1.0] * whole + ([part] if TOLERANCE < part < 1 - TOLERANCE else [])
        rooms.append(Room(node, node.cpus, node.memory_gib, [Gpu(share, node.gpu_memory_gib) for share in shares]))
    return rooms


def place(rooms: list[Room], name: str, need: PlacedResources, count: int, gpu_gib: float = 0.0) -> bool:
    """Place equal actors by the labels and the strategy of their role, and return whether all found a room."""
    allowed = [room for room in rooms if has_labels(room.node, need.labels)]
    if need.strategy == "strict_pack":
        whole = (room for room in sorted(allowed, key=attrgetter("order")) if _holds(room, need, count))
        room = next(whole, None)
        return room is not None and all(room.take(name, need, gpu_gib) for _ in range(count))
    for _ in range(count):
        rank = sorted(allowed, key=attrgetter("order"), reverse=need.strategy == "spread")
        room = next((room for room in rank if room.take(name, need, gpu_gib)), None)
        if room is None:
            return False
        if need.strategy == "strict_spread":
            allowed.remove(room)
    return True


def has_labels(node: Node, labels: Mapping[str, str]) -> bool:
    """Tell whether a node has labels, each a value, or as Ray reads it `!value`, `in(a,b)` or `!in(a,b)`."""
    for key, wanted in labels.items():
        value, positive = node.labels.get(key), not wanted.startswith("!")
        words = wanted.removeprefix("!")
        values = words[3:-1].split(",") if words.startswith("in(") and words.endswith(")") else [words]
        if (value in [one.strip() for one in values]) != positive:
            return False
    return True


def _holds(room: Room, need: PlacedResources, count: int) -> bool:
    trial = deepcopy(room)
    return all(trial.take("", need) for _ in range(count))
