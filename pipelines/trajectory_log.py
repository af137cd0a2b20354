"""Trajectories as JSON lines, one file a run and purpose."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from vsr1.agent.trajectory import Trajectory


def append_trajectories(path: Path, step: int, trajectories: list[Trajectory]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for trajectory in trajectories:
            file.write(json.dumps({"step": step, **trajectory.to_json()}) + "\n")


def iterate_trajectories(path: Path) -> Iterator[tuple[int, Trajectory]]:
    """Step and trajectory of each line, one at a time: the latents of a long run do not fit in memory together.

    A last line without its end, which a killed run leaves, is not read.

    Raises:
        ValueError: a line that is no trajectory, with its number.
    """
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith("\n"):
                return
            try:
                row = json.loads(line)
                yield row.pop("step"), Trajectory.from_json(row)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{path}:{number}: not a trajectory ({error!r}); delete the line to go on") from error


def read_trajectories(path: Path) -> list[Trajectory]:
    return [trajectory for _, trajectory in iterate_trajectories(path)]
