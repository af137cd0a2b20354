"""Trajectories as JSON lines, one file a run and purpose.

A row holds more than its trajectory: the step of a training, the fingerprint of an evaluation.
"""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from vsr1.agent.trajectory import Trajectory

_FIELDS = {field.name for field in fields(Trajectory)}


def append_trajectories(path: Path, step: int, trajectories: list[Trajectory]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for trajectory in trajectories:
            file.write(json.dumps({"step": step, **trajectory.to_json()}) + "\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a file, without a last line that was cut off; none where there is no file yet."""
    if not path.is_file():
        return []
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    return [json.loads(line) for line in whole.split("\n") if line]


def trajectory_of(row: dict[str, Any]) -> Trajectory:
    """The trajectory in a row."""
    return Trajectory.from_json({key: value for key, value in row.items() if key in _FIELDS})


def read_trajectories(path: Path) -> list[Trajectory]:
    """The trajectories of a file in its order."""
    return [trajectory_of(row) for row in read_rows(path)]
