"""The driver's side of the watch over processes: it brings actors under the watch of their node, and tells of faults.

An actor that Ray starts again comes under it again, and is told of as healed, as is one that another takes the place
of: the shards of a retrieval service end with it, and the next service starts its own. One that does not come back, as
where its node was the last with room for it, ends the stage. Nothing here blocks.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.handles import arrived
from actors.retrieval import RetrievalHandle
from actors.watch import NodeWatch, NodeWatchHandle, Notice
from vsr1.runs.events import WriteEvent, write_nothing
from vsr1.settings.parts import FleetConfig

ASK_EVERY_S = 0.25
SECTIONS = {  # of `cluster`, by role
    "retrieval": "retrieval",
    "embedder": "retrieval",
    "shard": "shard",
    "rewards": "reward",
}


class LostActorError(RuntimeError):
    """An actor whose process or node is gone is not back in time; the message says which, why and what it needs."""


def place(actor: Any) -> tuple[str, int]:
    """Return node and process of an actor, inside it."""
    return ray.get_runtime_context().get_node_id(), os.getpid()


@dataclass(eq=False)
class _Guarded:
    role: str
    actor: Any
    place: tuple[str, int] | None = None
    question: ray.ObjectRef | None = None  # for its place
    died: float | None = None  # when the process before this one was missed
    detect_s: float = 0.0
    reason: str = ""
    on_fault: Callable[[Notice], None] | None = None
    on_return: Callable[[], None] | None = None


class Watch:
    """Call `tick` at least every half second.

    Args:
        log: of the watches, to which their nodes are added.
    """

    def __init__(self, config: FleetConfig, log: Path | None = None, write: WriteEvent = write_nothing) -> None:
        self._config, self._log, self._write = config, log, write
        self._guarded: dict[str, _Guarded] = {}  # by the actor's name
        self._nodes: dict[str, NodeWatchHandle] = {}
        self._heard: dict[str, float] = {}  # when the watch of a node has answered last
        self._lost: set[str] = set()  # nodes
        self._notices: dict[ray.ObjectRef, str] = {}  # node of each call
        self._shards: list[Any] = []  # answers of retrieval services
        self._last_question = 0.0
        self._lock = threading.Lock()

    def guard(
        self,
        name: str,
        role: str,
        actor: Any,
        *,
        on_fault: Callable[[Notice], None] | None = None,
        on_return: Callable[[], None] | None = None,
    ) -> None:
        """Bring an actor under the watch; another thread than that of `tick` may do so.

        Args:
            name: of the actor; a new one of the same name takes its place, and heals its fault.
            on_fault: is told of its faults, by `tick`; else they are written as events.
            on_return: is called by `tick` when Ray has started it again.
        """
        with self._lock:
            before = self._guarded.get(name)
            if before and before.actor is actor:
                return
            now = _Guarded(role, actor, question=_place_of(actor), on_fault=on_fault, on_return=on_return)
            if before:
                now.died, now.detect_s, now.reason = before.died, before.detect_s, before.reason
            self._guarded[name] = now

    def guard_rank(self, name: str, rank: Any) -> None:
        """Bring a learner rank under the watch, None to let the last one go; the learner tells of its healing."""
        self.release(name)
        if rank is not None:
            self.guard(name, "learner", rank)

    def guard_shards(self, name: str, service: RetrievalHandle) -> None:
        """Bring a retrieval service under the watch, and the shards that it has, whenever it is started."""

        def ask() -> None:
            self._shards.append(service.shards.remote())

        self.guard(name, "retrieval", service, on_return=ask)
        ask()

    def places(self) -> dict[str, tuple[str, int]]:
        """Return node and process of the actors whose end would be seen, by name."""
        with self._lock:
            guarded = dict(self._guarded)
        return {name: one.place for name, one in guarded.items() if one.place is not None and one.question is None}

    def end(self, name: str) -> None:
        """End the process of an actor with all that it has started, also one that answers nothing, and let it go."""
        with self._lock:
            guarded = self._guarded.pop(name, None)
        if guarded is None:
            return
        if guarded.place is not None:
            node, pid = guarded.place
            if node in self._nodes:
                self._nodes[node].end.remote(pid)
        ray.kill(guarded.actor)

    def release(self, name: str) -> None:
        """Let an actor go that ends by itself."""
        with self._lock:
            self._guarded.pop(name, None)

    def leave(self, node: str) -> None:
        """End the watch of a node where nothing is guarded any more."""
        with self._lock:
            places = [guarded.place for guarded in self._guarded.values() if guarded.place]
        if node in self._nodes and node not in [name for name, _ in places]:
            ray.kill(self._nodes.pop(node))

    def lose(self, node: str, reason: str) -> None:
        """Take note that a node has left the cluster, with all that was guarded there."""
        self._lost.add(node)
        if node not in self._nodes:
            return
        ray.kill(self._nodes.pop(node))
        seconds = time.monotonic() - self._heard.pop(node)
        with self._lock:
            guarded = dict(self._guarded)
        for name, actor in guarded.items():
            if actor.place is not None and actor.place[0] == node:
                self._hear(guarded, Notice(name, actor.place[1], True, reason, seconds))

    def tick(self) -> None:
        """Take what the nodes' watches have seen.

        Raises:
            LostActorError: an actor that was missed is not back within `fleet.return_s`.
        """
        for answer in arrived(self._shards):
            self._shards.remove(answer)
            with suppress(ray.exceptions.RayError):  # the service died, and is asked again
                for name, shard in ray.get(answer).items():
                    self.guard(name, name.partition(" ")[0], shard)  # "shard" or "embedder"
        with self._lock:
            guarded = dict(self._guarded)
        for name, actor in guarded.items():
            self._locate(name, actor)
        for reference in arrived(self._notices):
            node = self._notices.pop(reference)
            try:
                notices = ray.get(reference)
            except ray.exceptions.RayError:
                continue  # Ray starts the watch again, or its node is gone
            if node in self._nodes:
                self._heard[node] = time.monotonic()
            for notice in notices:
                self._hear(guarded, notice)
        if time.monotonic() - self._last_question >= ASK_EVERY_S:
            self._last_question = time.monotonic()
            for node in self._nodes.keys() - self._notices.values():
                self._notices[self._nodes[node].notices.remote()] = node

    def stop(self) -> None:
        """End the watches; the actors go on unwatched."""
        self._guarded.clear()
        for node in self._nodes.values():
            ray.kill(node)
        self._nodes.clear()

    def _locate(self, name: str, actor: _Guarded) -> None:
        if actor.question is None:
            return
        if not arrived([actor.question]):
            self._check_return(name, actor)
            return
        try:
            actor.place = ray.get(actor.question)
        except ray.exceptions.ActorUnavailableError:
            self._check_return(name, actor)
            actor.question = _place_of(actor.actor)  # it is being started again
            return
        except ray.exceptions.RayError:  # it is gone for good: whoever calls it is told, and may start another one
            actor.question = actor.place = None
            return
        node, pid = actor.place
        if node in self._lost:  # since it has answered
            actor.question = _place_of(actor.actor)
            return
        actor.question = None
        if node not in self._nodes:
            self._heard[node] = time.monotonic()
            there = NodeAffinitySchedulingStrategy(node, soft=False)
            log = self._log and self._log.with_stem(f"{self._log.stem}-{node[:8]}")
            self._nodes[node] = NodeWatch.options(scheduling_strategy=there).remote(self._config.stopped_s, log)
        self._nodes[node].guard.remote(name, pid)
        if actor.died is not None:
            seconds = {"detect": actor.detect_s, "start": time.monotonic() - actor.died}
            seconds["all"] = sum(seconds.values())
            self._write("healed", role=actor.role, member=name, reason="it was started again", seconds=seconds)
            actor.died = None
            if actor.on_return is not None:
                actor.on_return()

    def _check_return(self, name: str, actor: _Guarded) -> None:
        limit_s = self._config.return_s
        if actor.died is None or time.monotonic() - actor.died < limit_s:
            return
        section = SECTIONS.get(actor.role)
        place = f" with room and labels for cluster.{section}" if section else ""
        raise LostActorError(
            f"{name} is gone: {actor.reason}; Ray has not started it again within fleet.return_s={limit_s:g} s. "
            f"Start a node{place}, and the same command goes on; or raise fleet.return_s, where a node or a large "
            "corpus takes longer (its log is in run_dir/logs)"
        )

    def _hear(self, guarded: dict[str, _Guarded], notice: Notice) -> None:
        actor = guarded.get(notice.name)
        if actor is None or actor.place is None or actor.place[1] != notice.pid:
            return  # it was let go
        if actor.on_fault is not None:
            actor.on_fault(notice)
            return
        actor.reason = notice.reason  # the last says most: a node's loss comes after the end of its processes
        if actor.died is None:
            actor.died, actor.detect_s = time.monotonic(), notice.seconds
            seconds = {"detect": notice.seconds}
            self._write("fault", role=actor.role, member=notice.name, reason=notice.reason, seconds=seconds)
        if notice.is_gone:
            actor.question = _place_of(actor.actor)


def _place_of(actor: Any) -> ray.ObjectRef:
    return actor.__ray_call__.remote(place)
