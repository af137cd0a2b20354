"""How many rollout workers a run is asked to have, from another process: `<run_dir>/scale.json`."""

from __future__ import annotations

import fcntl
import json
from dataclasses import dataclass
from pathlib import Path

from vsr1.formats.atomic import write_json
from vsr1.runs.folder import lock_of

FILE = "scale.json"


class ScaleError(ValueError):
    """A request that nobody could follow; the message says why."""


@dataclass(frozen=True)
class ScaleRequest:
    """The last request; `number` tells it from an equal one before it."""

    workers: int
    number: int


def ask_scale(run_dir: Path, target: str) -> str:
    """Ask the training in a run folder for a number of rollout workers; return what was asked for.

    Args:
        target: as in `rollouts=3`.

    Raises:
        ScaleError: another target, fewer than one, or no training runs in the folder.
    """
    name, _, value = target.partition("=")
    if name != "rollouts" or not value.isdecimal() or int(value) < 1:
        raise ScaleError(f"{target!r} is not a number of rollout workers from 1; write rollouts=3")
    if not _is_held(lock_of(run_dir, "grpo")):
        raise ScaleError(f"no training runs in {run_dir}; give the run_dir of a running `vsr1 grpo` by --run-dir")
    write_scale(run_dir, int(value))
    return f"{run_dir} was asked for {value} rollout workers; its events.jsonl tells when they serve"


def write_scale(run_dir: Path, workers: int) -> None:
    """Write a request."""
    before = read_scale(run_dir)
    write_json(run_dir / FILE, {"workers": workers, "number": 1 if before is None else before.number + 1})


def read_scale(run_dir: Path) -> ScaleRequest | None:
    """Return the last request, None when there was none."""
    try:
        return ScaleRequest(**json.loads((run_dir / FILE).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def _is_held(lock: Path) -> bool:
    if not lock.is_file():
        return False
    with lock.open(encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:  # it is held, or the file system has no locks
            return True
    return False
