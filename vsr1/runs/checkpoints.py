"""Weights that a run keeps on its way: the newest `step-N`, and beside them the best by an evaluation."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from vsr1.formats.atomic import write_json


def remove_older(root: Path, limit: int | None) -> None:
    """Remove all `step-N` of a folder but the newest `limit`; None keeps all."""
    steps = sorted(root.glob("step-*"), key=lambda folder: int(folder.name.removeprefix("step-")))
    for folder in steps[:-limit] if limit else ():
        shutil.rmtree(folder)


class Best:
    """Keeps the checkpoint of the best evaluation in a folder, and in `<folder>.json` which it is.

    Args:
        folder: of the checkpoint.
        save: writes a checkpoint folder; where ranks write it together, all of them hold a `Best` and see one value.
        notes: whether this process writes the note.
    """

    def __init__(self, folder: Path, save: Callable[[Path], None], *, notes: bool = True) -> None:
        self._folder, self._save, self._notes = folder, save, notes
        self._note = folder.with_name(f"{folder.name}.json")
        self._value: float | None = None
        if self._note.is_file():  # of the run that goes on
            self._value = float(json.loads(self._note.read_text(encoding="utf-8"))["value"])

    def offer(self, step: int, value: float) -> None:
        """Keep the weights of a step if no evaluation before it had a larger or equal value."""
        if self._value is None or value > self._value:
            self._value = value
            self._save(self._folder)
            if self._notes:
                write_json(self._note, {"step": step, "value": value})
