"""The replicas of one shard as one client: a call goes to the replica with least to do, and to another when it is late.

A replica is up until a call to it fails or is not answered in time; then it is down until its own `recover` returns. A
call is answered by one replica only, and fails only when none is up: then at once, with the shard's name, so that the
caller can wait for `recovered` or go on without.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from vsr1.retrieval.request import RetrievalError

HEDGE_SAMPLES = 20  # answers before a time to hedge after is known
RECENT = 200  # answers that it is taken from


class ShardUnavailableError(RetrievalError):
    """No replica of a shard is up."""

    def __init__(self, shard: str, reason: str) -> None:
        super().__init__(f"{shard} is not available ({reason})")
        self.shard, self.reason = shard, reason

    def __reduce__(self) -> tuple[type[ShardUnavailableError], tuple[str, str]]:
        return ShardUnavailableError, (self.shard, self.reason)


class ReplicaClient(Protocol):
    """How to reach a replica; a call raises `ShardUnavailableError` if the replica cannot answer."""

    name: str

    async def recover(self) -> None:
        """Return when the replica can answer.

        Raises:
            RetrievalError: it never will, and why.
        """


Client = TypeVar("Client", bound=ReplicaClient)
Answer = TypeVar("Answer")


@dataclass
class _Replica(Generic[Client]):
    client: Client
    calls: int = 0  # not answered yet
    down: str = ""  # why
    recovery: asyncio.Task[None] | None = field(default=None, repr=False)


class ReplicaSet(Generic[Client]):
    """Use it from one event loop.

    Args:
        name: of the shard. clients: its replicas, at least one. timeout_s: after which a replica counts as down.
        hedges: whether another one is asked too when an answer is late; not where late calls have more to do.
    """

    def __init__(self, name: str, clients: Sequence[Client], *, timeout_s: float, hedges: bool = True) -> None:
        self.name = name
        self.recovered = asyncio.Event()  # set while a replica is up
        self.recovered.set()
        self.hedged = 0
        self._timeout_s, self._hedges = timeout_s, hedges
        self._replicas = [_Replica(client) for client in clients]
        self._seconds: deque[float] = deque(maxlen=RECENT)

    @property
    def down(self) -> list[str]:
        """Return the names of the replicas that are down."""
        return [replica.client.name for replica in self._replicas if replica.down]

    async def call(self, ask: Callable[[Client], Coroutine[Any, Any, Answer]]) -> Answer:
        """Return one answer of one replica. Replicas must give the same answer, and asking twice must do no harm.

        Raises:
            ShardUnavailableError: every replica is down, or went down with this call. Other errors of the replica that
                answered first come through.
        """
        loop = asyncio.get_running_loop()
        running: dict[asyncio.Task[Answer], tuple[_Replica[Client], float]] = {}
        tried: set[int] = set()
        try:
            while True:
                begun = [since for _, since in running.values()]
                hedge_at = begun[0] + self._hedge_after() if len(running) == 1 else loop.time()
                free = [r for r in self._replicas if not r.down and id(r) not in tried]
                if free and len(running) < 2 and loop.time() >= hedge_at:
                    replica = min(free, key=lambda r: r.calls)
                    self.hedged += bool(running)
                    tried.add(id(replica))
                    replica.calls += 1
                    running[loop.create_task(ask(replica.client))] = replica, loop.time()
                    continue
                if not running:
                    raise self.unavailable()
                due = min(begun) + self._timeout_s
                wait_s = min(due, hedge_at) - loop.time() if free and len(running) == 1 else due - loop.time()
                ended, _ = await asyncio.wait(running, timeout=max(0.0, wait_s), return_when=asyncio.FIRST_COMPLETED)
                for task in ended:
                    replica, since = running.pop(task)
                    replica.calls -= 1
                    error = task.exception()
                    if not isinstance(error, ShardUnavailableError):
                        self._seconds.append(loop.time() - since)
                        return task.result()
                    self._mark_down(replica, str(error))
                for task, (replica, since) in list(running.items()):
                    if loop.time() - since >= self._timeout_s:
                        self._drop(running, task)
                        self._mark_down(replica, f"{replica.client.name} gave no answer within {self._timeout_s:g} s")
        finally:
            for task in list(running):
                self._drop(running, task)

    def unavailable(self) -> ShardUnavailableError:
        """Make the error of a shard that has no replica; it says why each is down."""
        reasons = "; ".join(replica.down for replica in self._replicas if replica.down)
        return ShardUnavailableError(self.name, reasons or "no replica")

    def _drop(self, running: dict[asyncio.Task[Answer], tuple[_Replica[Client], float]], task: Any) -> None:
        replica, _ = running.pop(task)
        replica.calls -= 1
        task.cancel()

    def _hedge_after(self) -> float:
        if len(self._seconds) < HEDGE_SAMPLES or not self._hedges:
            return float("inf")
        ordered = sorted(self._seconds)
        return ordered[int(0.95 * (len(ordered) - 1))]

    def _mark_down(self, replica: _Replica[Client], reason: str) -> None:
        if replica.down:
            return
        replica.down = reason
        if all(r.down for r in self._replicas):
            self.recovered.clear()
        replica.recovery = asyncio.get_running_loop().create_task(self._bring_up(replica))

    async def _bring_up(self, replica: _Replica[Client]) -> None:
        try:
            await replica.client.recover()
        except RetrievalError as error:
            replica.down = str(error)
            return
        replica.down = ""
        self.recovered.set()
