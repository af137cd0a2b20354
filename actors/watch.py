"""The watch of one node: it ends processes there that stand still, and what dead actors leave behind.

A process that got SIGSTOP answers nothing, dies of no signal but SIGKILL and keeps its memory, so whoever waits for it
waits for ever. An engine outlives the actor that started it, if that is killed. The watch is told the processes of the
actors on its node, looks at them and at all that they have started every half second, and ends what must be ended. Ray
then tells everybody who waits that the actor died.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import psutil
import ray

from actors.handles import Remote
from actors.logs import log_to

LOOK_EVERY_S = 0.5


@dataclass(frozen=True)
class Notice:
    """What became of the process of an actor: it is gone, or it was ended after it, or a child, had stood still."""

    name: str  # of the actor
    pid: int
    is_gone: bool
    reason: str
    seconds: float  # since it was seen in order


@dataclass
class _Guarded:
    name: str
    process: psutil.Process
    seen: float
    children: list[psutil.Process] = field(default_factory=list)
    stopped: dict[int, float] = field(default_factory=dict)  # since when, by process id


class _Processes:
    """The processes of this node at one moment, with their status."""

    def __init__(self) -> None:
        self.status: dict[psutil.Process, str] = {}
        self._children: dict[int, list[psutil.Process]] = defaultdict(list)  # by the id of who has started them
        for process in psutil.process_iter(["ppid", "status"]):
            self.status[process] = process.info["status"]
            self._children[process.info["ppid"]].append(process)

    def below(self, pid: int) -> list[psutil.Process]:
        """Return what a process has started, what that has started, and so on."""
        processes = list(self._children[pid])
        for process in processes:  # which grows meanwhile
            processes += self._children[process.pid]
        return processes


class NodeWatchActor:
    """Looks at processes of its node from a thread of its own.

    Args:
        stopped_s: seconds that a process may stand still.
    """

    def __init__(self, stopped_s: float, log: Path | None = None) -> None:
        log_to(log)
        self._stopped_s = stopped_s
        self._guarded: dict[int, _Guarded] = {}
        self._notices: list[Notice] = []
        self._lock = threading.Lock()
        threading.Thread(target=self._look_on, daemon=True).start()

    def guard(self, name: str, pid: int) -> None:
        """Look at a process of this node from now on; one that has ended already is told of."""
        with self._lock:
            try:
                self._guarded[pid] = _Guarded(name, psutil.Process(pid), time.monotonic())
            except psutil.NoSuchProcess:
                self._notices.append(Notice(name, pid, True, f"process {pid} ended", 0.0))

    def end(self, pid: int) -> None:
        """End a process that is guarded, and all that it has started, at once."""
        with self._lock:
            if pid in self._guarded:
                _end(self._guarded[pid])

    def notices(self) -> list[Notice]:
        """Return what has happened since this was asked last."""
        with self._lock:
            notices, self._notices = self._notices, []
            return notices

    def _look_on(self) -> None:
        while True:
            time.sleep(LOOK_EVERY_S)
            self.look(time.monotonic())

    def look(self, now: float) -> None:
        """Look at all that is guarded, in one walk over the processes of the node.

        Args:
            now: seconds of the monotonic clock.
        """
        with self._lock:
            processes = _Processes()
            for guarded in list(self._guarded.values()):
                self._look_at(guarded, processes, now)

    def _look_at(self, guarded: _Guarded, processes: _Processes, now: float) -> None:
        pid = guarded.process.pid
        if processes.status.get(guarded.process) in (None, psutil.STATUS_DEAD, psutil.STATUS_ZOMBIE):
            _end(guarded)
            del self._guarded[pid]
            self._notices.append(Notice(guarded.name, pid, True, f"process {pid} ended", now - guarded.seen))
            return
        guarded.children = processes.below(pid)
        still = [
            process
            for process in (guarded.process, *guarded.children)
            if processes.status[process] == psutil.STATUS_STOPPED
        ]
        guarded.stopped = {process.pid: guarded.stopped.get(process.pid, now) for process in still}
        if not still:
            guarded.seen = now
        for process in still:
            if now - guarded.stopped[process.pid] >= self._stopped_s:
                reason = f"process {process.pid} stood still for {self._stopped_s:g} s (fleet.stopped_s)"
                self._notices.append(Notice(guarded.name, pid, False, reason, now - guarded.seen))
                with suppress(psutil.NoSuchProcess):
                    process.kill()


def _end(guarded: _Guarded) -> None:
    with suppress(psutil.NoSuchProcess):
        guarded.children = guarded.process.children(recursive=True) or guarded.children
    for process in (guarded.process, *guarded.children):
        with suppress(psutil.NoSuchProcess):  # psutil knows a process by its start, too
            process.kill()


class NodeWatchHandle(Protocol):
    """What a handle of a `NodeWatchActor` offers."""

    guard: Remote[[str, int], None]
    end: Remote[[int], None]
    notices: Remote[[], list[Notice]]


NodeWatch: Any = ray.remote(num_cpus=0, max_restarts=-1)(NodeWatchActor)  # Any: the stubs give a handle no `.remote`
