"""How many rollout workers a run is asked to have, from another process: `<run_dir>/scale.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from vsr1.formats.atomic import write_json

FILE = "scale.json"


@dataclass(frozen=True)
class ScaleRequest:
    """The last request; `number` tells it from an equal one before it."""

    workers: int
    number: int


def write_scale(run_dir: Path, workers: int) -> None:
    """Ask the run in a folder for a number of rollout workers, at least one."""
    before = read_scale(run_dir)
    write_json(run_dir / FILE, {"workers": workers, "number": 1 if before is None else before.number + 1})


def read_scale(run_dir: Path) -> ScaleRequest | None:
    """Return the last request, None when there was none."""
    try:
        return ScaleRequest(**json.loads((run_dir / FILE).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
