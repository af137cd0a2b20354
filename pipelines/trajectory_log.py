"""Trajectories as JSON lines, one file a run and purpose."""

from __future__ import annotations

import json
from pathlib import Path

from vsr1.agent.trajectory import Trajectory


def append_trajectories(path: Path, step: int, trajectories: list[Trajectory]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for trajectory in trajectories:
            file.write(json.dumps({"step": step, **trajectory.to_json()}) + "\n")


def read_trajectories(path: Path) -> list[Trajectory]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [Trajectory.from_json({key: value for key, value in row.items() if key != "step"}) for row in rows]
