"""Trajectories as JSON lines, one file a run and purpose: training with its steps and advantages, or an evaluation."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from vsr1.agent.trajectory import Trajectory
from vsr1.rl.credit import Credit


@dataclass(frozen=True, eq=False)
class LoggedTrajectory:
    step: int  # 0 in an evaluation
    trajectory: Trajectory
    credits: list[Credit] | None  # of the turns, as they were trained on; None in an evaluation


def append_trajectories(
    path: Path, step: int, trajectories: list[Trajectory], credits: list[list[Credit]] | None = None
) -> None:
    """Add lines to a file.

    Args:
        credits: advantages of the turns of each trajectory, where they are trained on.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    turns = [{}] * len(trajectories) if credits is None else [{"advantages": list(map(asdict, c))} for c in credits]
    with path.open("a", encoding="utf-8") as file:
        for trajectory, advantages in zip(trajectories, turns, strict=True):
            file.write(json.dumps({"step": step, **advantages, **trajectory.to_json()}) + "\n")


def read_log(path: Path) -> list[LoggedTrajectory]:
    """All lines of a file, in order."""
    logged = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        if line:
            row = json.loads(line)
            step, advantages = row.pop("step"), row.pop("advantages", None)
            credits = None if advantages is None else [Credit(**turn) for turn in advantages]
            logged.append(LoggedTrajectory(step, Trajectory.from_json(row), credits))
    return logged


def read_trajectories(path: Path) -> list[Trajectory]:
    return [logged.trajectory for logged in read_log(path)]
