"""The events of a run: every fault and every healing, as JSON lines with the seconds that their parts took.

    {"time": 1764230400.1, "kind": "member died", "member": "rollout-1", "seconds": {"detect": 0.4}}

`kind` says what happened in words; the other fields are the writer's. Any thread may write.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from vsr1.formats.atomic import cut_torn_line

EVENTS = "events.jsonl"  # in the run's folder


class WriteEvent(Protocol):
    """Writes an event of a run, as `EventLog.write` does."""

    def __call__(self, kind: str, **fields: Any) -> None: ...


def write_nothing(kind: str, **fields: Any) -> None:
    """Take an event that nobody wants."""


class EventLog:
    """Appends to a file of events.

    Args:
        clock: seconds since the epoch.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        cut_torn_line(path)
        self._path, self._clock, self._lock = path, clock, threading.Lock()

    def write(self, kind: str, **fields: Any) -> None:
        """Add an event; the fields are JSON values."""
        row = {"time": self._clock(), "kind": kind, **fields}
        with self._lock, self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def read_events(path: Path) -> list[dict[str, Any]]:
    """Return the events of a file in order, none where there is no file; a torn last line is left out.

    Raises:
        ValueError: a line that is no event, with its number.
    """
    if not path.is_file():
        return []
    rows = []
    *lines, _ = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: not an event ({error}); delete the line to go on") from error
        if not isinstance(row, dict) or not {"time", "kind"} <= row.keys():
            raise ValueError(f"{path}:{number}: expected an object with time and kind")
        rows.append(row)
    return rows
