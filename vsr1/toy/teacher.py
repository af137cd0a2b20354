"""Rule-based reasoning for the toy corpus: names every event of the shown film with its start, then judges."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from vsr1.toy.world import Event, describe


def reasoning(events: Sequence[Event], queried: tuple[Event, Event], matched: bool) -> str:
    """The text inside `<think>`.

    Args:
        events: of the shown film. queried: the two that the query names. matched: whether the film shows them in a row.
    """
    seen = ", ".join(f"{event.start} {describe(event)}" for event in events)
    wanted = f"{describe(queried[0])} then {describe(queried[1])}"
    return f"{seen}. wanted {wanted}. {'found' if matched else 'not found'}."


def find_queried(events: Sequence[Event], queried: tuple[Event, Event]) -> tuple[float, float] | None:
    """Start and end in seconds of two consecutive events that look like the queried ones, None if there are none."""
    for first, second in pairwise(events):
        if (first.look, second.look) == (queried[0].look, queried[1].look):
            return float(first.start), float(second.end)
    return None


def load_events(path: Path) -> dict[str, tuple[list[Event], int]]:
    """Per video its events and which one its own query names first."""
    known = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        known[row["video"]] = ([Event(**event) for event in row["events"]], row["first"])
    return known
