"""What a stage says while it runs: on a terminal a live table of the roles, else exactly one plain line a step.

The driver alone speaks: it knows which of its calls are pending, so "busy" counts the actors that have one, and
"waiting" the tasks beyond what they run at one time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class Load:
    """Of one role: actors at work, and tasks that none of them has begun."""

    busy: int
    waiting: int = 0


class Progress:
    """What every stage reports to; this one shows nothing."""

    def begin(self, stage: str, steps: int, actors: dict[str, int]) -> None:
        """A stage of so many steps begins, with so many actors of each role."""

    def now(self, phase: str, **loads: Load) -> None:
        """What goes on; a role that is not named is idle."""

    def step(self, number: int, values: dict[str, float], seconds: dict[str, float]) -> None:
        """A step has ended, with what it gave and the seconds of its parts."""


QUIET = Progress()


class PlainLines(Progress):
    def __init__(self, console: Console) -> None:
        self._console = console

    def begin(self, stage: str, steps: int, actors: dict[str, int]) -> None:
        self._stage, self._steps = stage, steps

    def step(self, number: int, values: dict[str, float], seconds: dict[str, float]) -> None:
        told = [f"{name} {value:.3f}" for name, value in values.items()]
        told += [f"{name} {value:.1f} s" for name, value in seconds.items()]
        line = f"{self._stage} step {number}/{self._steps}: {', '.join(told)}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class LiveTable(Progress):
    """The state of a stage, and a `view` of it as it is now: the roles, and below them how far it is."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._loads: dict[str, Load] = {}
        self._phase = ""
        self.begin("", 0, {})

    def begin(self, stage: str, steps: int, actors: dict[str, int]) -> None:
        self._stage, self._steps, self._actors = stage, steps, actors
        self._began, self._done, self._values = self._clock(), 0, dict[str, float]()

    def now(self, phase: str, **loads: Load) -> None:
        self._phase, self._loads = phase, loads

    def step(self, number: int, values: dict[str, float], seconds: dict[str, float]) -> None:
        self._done, self._values = number, values
        self._until = self._clock()

    def view(self) -> Group:
        table = Table(title=f"{self._stage}: {self._phase}" if self._stage else "starting")
        table.add_column("role")
        for heading in ("busy", "idle", "waiting"):
            table.add_column(heading, justify="right")
        for role, count in self._actors.items():
            load = self._loads.get(role, Load(0))
            table.add_row(role, str(load.busy), str(count - load.busy), str(load.waiting))
        return Group(table, Text(self._line()))

    def _line(self) -> str:
        if not self._steps:
            return ""
        values = [f"{name} {value:.3f}" for name, value in self._values.items()]
        return ", ".join([f"step {self._done}/{self._steps}", *values, f"ETA {self._eta()}"])

    def _eta(self) -> str:
        """The remaining steps at the mean pace of those that are done, less the time since the last one ended."""
        if not self._done:
            return "unknown"
        left = (self._until - self._began) / self._done * (self._steps - self._done)
        return str(timedelta(seconds=max(0, round(left - (self._clock() - self._until)))))


@contextmanager
def shown_progress(console: Console) -> Iterator[Progress]:
    """The way of showing that fits the console."""
    if not console.is_terminal:
        yield PlainLines(console)
        return
    live = LiveTable()
    with Live(get_renderable=live.view, console=console, refresh_per_second=2):
        yield live
        live.now("done")
