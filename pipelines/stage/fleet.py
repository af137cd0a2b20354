"""The rollout workers of a stage: `vsr1.fleet` decides, this does it with actors.

A member that dies, gives no token or does not take weights is ended with all its processes and started again, while
the others go on. A member serves once it has taken the last weights that were pushed, from the object store, alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray

from actors.handles import arrived
from actors.rollout import RolloutWorkerHandle
from actors.watch import Notice
from pipelines.stage.faults import dead_actor
from pipelines.stage.nodes import NodeEvents
from pipelines.stage.watch import Watch
from vsr1.config import Config
from vsr1.fleet import Fleet
from vsr1.runs.events import WriteEvent, write_nothing
from vsr1.runs.scale import read_scale
from vsr1.seats import Order, State

LOOK_EVERY_S = 1.0  # for requests to scale, and for nodes that leave
PAUSE_S = 0.02  # where something is waited for
LEAVE_S = 10.0  # that a member has to end its engine
NODE_MARGIN_S = 5.0  # between the end of a member and that of its node


@dataclass(eq=False)
class Member:
    """One process of a rollout worker; the next one of the same name is another member."""

    name: str
    handle: RolloutWorkerHandle
    node: str = ""


class RolloutFleet:
    """Call `tick` at least every half second; nothing here but `start` and `settle` blocks.

    Args:
        make: starts the actor of a rollout worker, by name.
        clips: returns the clip stores of a node, by split.
        write: writes events.
        vacate: ends what was started on a node for its members, where none is left: an autoscaler may take it then.
    """

    def __init__(
        self,
        config: Config,
        make: Callable[[str], RolloutWorkerHandle],
        clips: Callable[[str], dict[str, Any]],
        watch: Watch,
        write: WriteEvent = write_nothing,
        vacate: Callable[[str], None] = lambda node: None,
    ) -> None:
        rollout = config.rollout
        at_once = rollout.max_episodes or 2 * rollout.engine.max_num_seqs
        self._config, self._make, self._clips, self._watch, self._write = config, make, clips, watch, write
        self._fleet = Fleet(config.fleet, at_once, time.monotonic)
        self._fleet.scale(rollout.workers)
        self._members: dict[str, Member] = {}
        self._calls: dict[ray.ObjectRef, tuple[Member, Callable[[Any], None]]] = {}
        self._leaving: dict[ray.ObjectRef, tuple[Member, float]] = {}
        self._weights: tuple[str, Any, int] | None = None  # the last ones: how they travel, what is sent, their version
        self._connected: Any = None  # by NCCL: start of the learner, and members
        self._receiving: set[Member] = set()  # who has not begun to receive the last broadcast
        self._learners: Any = None  # of the last push
        self._is_starting = False
        self._last_look, self._nodes = 0.0, NodeEvents(write)
        self._vacate, self._used = vacate, set[str]()  # nodes
        self._request = read_scale(config.run_dir)  # the last request; one that is there was made to an earlier run

    def start(self) -> None:
        """Start the members and wait until all serve; the first one that cannot start raises its error."""
        self._is_starting = True
        while not self._fleet.is_complete:
            self.tick()
            time.sleep(PAUSE_S)
        self._is_starting = False

    def settle(self) -> None:
        """Wait until some member serves, and none is on its way to the current weights."""
        while not self._fleet.is_settled:
            self.tick()
            time.sleep(PAUSE_S)

    def pick(self) -> Member | None:
        """Return the member that gets the next sample, least loaded of those that serve and have room; None: nobody.

        Whoever is picked counts as loaded until `played`.
        """
        name = self._fleet.pick()
        if name is None:
            return None
        self._fleet.given(name)
        return self._members[name]

    def played(self, member: Member, *, died: bool = False, failed: bool = False) -> None:
        """Report that a sample has left its member: played, failed there, or lost with its process."""
        if died:
            self._fleet.taken_back(member.name)
            self._lost(member, None)
        else:
            self._fleet.played(member.name, failed=failed)

    @property
    def members(self) -> list[Member]:
        """Return the members that have a process."""
        return list(self._members.values())

    def serving(self) -> list[str]:
        """Return the names of the members that get samples."""
        return [name for name, seat in self._fleet.seats.items() if seat.state is State.HEALTHY]

    def counts(self) -> dict[str, int]:
        """Return the number of members in each state."""
        return self._fleet.counts()

    def push(self, learners: Any, version: int) -> None:
        """Send the learner's weights to all that serve; each plays new samples once it has verified them.

        Args:
            learners: a `LearnerGroup`.
        """
        way, awake = self._config.rollout.transfer, [self._members[name] for name in self._fleet.awake()]
        if way == "nccl" and awake:
            if self._connected != (learners.starts, awake):
                learners.open_transfer([member.handle for member in awake])
                self._connected = learners.starts, awake
            self._receiving = set(awake)
            content: Any = (learners.layout(), learners.broadcast())
        else:
            way = "ipc" if way == "ipc" else "file"
            content = learners.share() if way == "ipc" else learners.weights()
        self._weights, self._learners = (way, content, version), learners
        self._fleet.push(version)
        self.tick()

    def scale(self, count: int) -> None:
        """Let that many members serve, at least one; who leaves ends what it plays first."""
        self._write("scale", role="rollout", workers=count)
        self._fleet.scale(count)

    def tick(self) -> None:
        """Hear what was answered, find who is late, and do what follows.

        Raises:
            FleetError: no member is left that could be healed.
            LostActorError: another actor is gone and does not come back.
        """
        self._watch.tick()
        self._hear()
        self._look()
        try:
            for order in self._fleet.orders():
                self._obey(order)
        finally:
            for event in self._fleet.events:
                self._write(**event)
            self._fleet.events.clear()
        self._end_leavers()

    def stop(self) -> None:
        """End all members: engines first, so that none outlives its worker."""
        for member in self._members.values():
            self._leave(member)
        while self._leaving:
            self._end_leavers()
            time.sleep(PAUSE_S)
        self._members.clear()

    def _hear(self) -> None:
        for reference in arrived(self._calls):
            member, proceed = self._calls.pop(reference)
            if self._members.get(member.name) is not member:
                continue  # another process has its place
            try:
                answer = ray.get(reference)
            except ray.exceptions.RayError as error:
                self._lost(member, error)
            else:
                proceed(answer)

    def _then(self, member: Member, reference: ray.ObjectRef, proceed: Callable[[Any], None]) -> None:
        """Go on with the answer of a member, when it is there."""
        self._calls[reference] = member, proceed

    def _lost(self, member: Member, error: BaseException | None) -> None:
        if self._is_starting and error is not None:
            raise error
        if self._members.get(member.name) is member:
            self._fleet.lost(member.name, _reason(error))

    def _obey(self, order: Order) -> None:
        name = order.member
        match order.do:
            case "start" | "restart":
                if old := self._members.pop(name, None):
                    self._end(old)
                member = self._members[name] = Member(name, self._make(name))
                self._then(member, member.handle.node.remote(), lambda node: self._load(member, node))
            case "probe":
                member = self._members[name]
                self._then(member, member.handle.probe.remote(), lambda _: self._fleet.answered(name))
            case "pull":
                self._pull(self._members[name])
            case "end":
                if leaver := self._members.pop(name, None):  # it may not have been started yet
                    self._leave(leaver)

    def _load(self, member: Member, node: str) -> None:
        """Let a member load its engine, on the node where it came to be."""
        member.node = node

        def lost(notice: Notice) -> None:
            self._fleet.lost(member.name, notice.reason, notice.seconds)

        self._watch.guard(member.name, "rollout", member.handle, on_fault=lost)
        ready = member.handle.start.remote(self._clips(node))
        self._then(member, ready, lambda _: self._fleet.started(member.name))

    def _pull(self, member: Member) -> None:
        if self._weights is None:  # the weights of the checkpoint, which it has loaded
            self._fleet.holds(member.name, self._fleet.version, "")
            return
        way, content, version = self._weights
        if way == "nccl" and member in self._receiving:
            self._receiving.discard(member)
        elif way == "nccl":  # the broadcast is over: another member has the weights, or the learner
            way, peers = "file", self.serving()
            if not peers and self._fleet.is_taken():
                self._fleet.postpone(member.name)
                return
            content = self._members[peers[0]].handle.give.remote() if peers else self._learners.weights()
        answer = member.handle.push.remote(way, content, version)
        self._then(member, answer, lambda print_: self._fleet.holds(member.name, version, print_))

    def _look(self) -> None:
        """See who asks for another number of members, and which nodes leave."""
        if time.monotonic() - self._last_look < LOOK_EVERY_S:
            return
        self._last_look = time.monotonic()
        request = read_scale(self._config.run_dir)
        if request is not None and request != self._request:
            self._request = request
            self.scale(request.workers)
        for node, reason in self._nodes.look().items():
            self._watch.lose(node, reason)
        self._give_back()
        leaving = draining_nodes()
        for member in self.members:
            if member.node in leaving:
                self._fleet.drain(member.name, "its node leaves", limit_s=leaving[member.node], replace=True)

    def _give_back(self) -> None:
        """Vacate the nodes where no member is left, unless one is on its way, which may come there."""
        used = {member.node for member in (*self.members, *(member for member, _ in self._leaving.values()))}
        if "" not in used:
            for node in self._used - used:
                self._vacate(node)
            self._used = used
        else:
            self._used |= used - {""}

    def _leave(self, member: Member) -> None:
        """Let a member end its engine, and end it then."""
        self._leaving[member.handle.stop.remote()] = member, time.monotonic() + LEAVE_S

    def _end_leavers(self) -> None:
        for reference, (member, deadline) in list(self._leaving.items()):
            if arrived([reference]) or time.monotonic() >= deadline:
                del self._leaving[reference]
                self._end(member)

    def _end(self, member: Member) -> None:
        self._watch.end(member.name)
        ray.kill(member.handle)


def draining_nodes() -> dict[str, float | None]:
    """Return the seconds in which nodes that leave the cluster should be empty, by id, None where that is open.

    Ray itself moves no actor away from them.
    """
    nodes = ray._private.state.state.get_draining_nodes()
    ends = {node: end_ms / 1e3 - time.time() - NODE_MARGIN_S for node, end_ms in nodes.items()}
    return {node: max(0.0, end) if nodes[node] else None for node, end in ends.items()}


def _reason(error: BaseException | None) -> str:
    if error is None:
        return "its process ended"
    cause = getattr(error, "cause", error)
    if isinstance(cause, ray.exceptions.RayActorError):
        return dead_actor(str(cause))
    return f"{type(cause).__name__}: {cause}"
