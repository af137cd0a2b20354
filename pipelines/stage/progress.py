"""What a stage shows while it runs: on a terminal a live table of the roles, else one plain line a step.

Only the driver shows anything. It knows which of its calls are pending: an actor with a pending call is busy, and a
task waits if it is beyond what the actors run at one time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from threading import Event, Thread

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

SILENCE_S = 60.0  # after which a line says what goes on


@dataclass(frozen=True)
class Load:
    """What one role does: how many of its actors are busy, and how many tasks none of them has begun."""

    busy: int
    waiting: int = 0


class Progress:
    """Takes the reports of a stage; this one shows nothing."""

    def begin(self, stage: str, steps: int, actors: dict[str, int]) -> None:
        """Report that a stage begins, with its number of steps and the number of actors of each role."""

    def now(self, phase: str, **loads: Load) -> None:
        """Report what goes on; a role that is not named is idle."""

    def step(self, number: int, values: dict[str, float], seconds: dict[str, float]) -> None:
        """Report that a step has ended, with its values and the seconds of its parts."""


QUIET = Progress()


class PlainLines(Progress):
    """Prints one line a step, and one on what goes on whenever nothing has been reported for `SILENCE_S`."""

    def __init__(self, console: Console, silence_s: float = SILENCE_S) -> None:
        self._console, self._silence_s = console, silence_s
        self._stage, self._phase = "starting", ""
        self._news, self._is_over = Event(), False

    def watch(self) -> None:
        """Print what goes on while nothing is reported, until `close`; for a thread of its own."""
        silences = 0
        while not self._is_over:
            silences = 0 if self._news.wait(self._silence_s) else silences + 1
            self._news.clear()
            if silences:
                self._print(f"still {self._stage} {self._phase}".rstrip() + f": {silences * self._silence_s:g} s")

    def close(self) -> None:
        """End `watch`."""
        self._is_over = True
        self._news.set()

    def begin(self, stage: str, steps: int, actors: dict[str, int]) -> None:
        self._stage, self._steps = stage, steps
        self._news.set()

    def now(self, phase: str, **loads: Load) -> None:
        self._phase = phase
        self._news.set()

    def step(self, number: int, values: dict[str, float], seconds: dict[str, float]) -> None:
        parts = [f"{name} {value:.3f}" for name, value in values.items()]
        parts += [f"{name} {value:.1f} s" for name, value in seconds.items()]
        self._print(f"{self._stage} step {number}/{self._steps}: {', '.join(parts)}")
        self._news.set()

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class LiveTable(Progress):
    """Keeps the state of a stage and draws it as it is now: the roles, and below them how far the stage is."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._loads: dict[str, Load] = {}
        self._phase = ""
        self.begin("", 0, {})

    def begin(self, stage: str, steps: int, actors: dict[str, int]) -> None:
        self._stage, self._steps, self._actors = stage, steps, actors
        self._start, self._steps_ended, self._values = self._clock(), 0, dict[str, float]()
        self._steps_seen = 0  # a run that goes on begins with a later one

    def now(self, phase: str, **loads: Load) -> None:
        self._phase, self._loads = phase, loads

    def step(self, number: int, values: dict[str, float], seconds: dict[str, float]) -> None:
        self._steps_ended, self._values = number, values
        self._steps_seen += 1
        self._last_end = self._clock()

    def view(self) -> Group:
        """Return the table of the roles and the line below it."""
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
        return ", ".join([f"step {self._steps_ended}/{self._steps}", *values, f"ETA {self._eta()}"])

    def _eta(self) -> str:
        """Return the time that the remaining steps take at the mean pace so far, less the time since the last one."""
        if not self._steps_ended:
            return "unknown"
        pace = (self._last_end - self._start) / self._steps_seen
        seconds = pace * (self._steps - self._steps_ended) - (self._clock() - self._last_end)
        return str(timedelta(seconds=max(0, round(seconds))))


@contextmanager
def shown_progress(console: Console) -> Iterator[Progress]:
    """Show a stage in the way that fits the console."""
    if not console.is_terminal:
        lines = PlainLines(console)
        watch = Thread(target=lines.watch, daemon=True)
        watch.start()
        try:
            yield lines
        finally:
            lines.close()
            watch.join()
        return
    live = LiveTable()
    with Live(get_renderable=live.view, console=console, refresh_per_second=2):
        yield live
        live.now("done")
