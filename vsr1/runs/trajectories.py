"""Trajectories as JSON lines, one file a run and purpose.

A row holds more than its trajectory: of a training its step and the advantages of its turns, of an evaluation the
fingerprint of its settings.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from vsr1.episode.trajectory import Trajectory
from vsr1.rl.credit import Credit

_FIELDS = {field.name for field in fields(Trajectory)}


class TrajectoryLogError(ValueError):
    """A line that is not a trajectory; the message names the file and the line."""


@dataclass(frozen=True, eq=False)
class LoggedTrajectory:
    trajectory: Trajectory
    step: int = 0  # 0 in an evaluation
    credits: list[Credit] | None = None  # of the turns, as they were trained on; None in an evaluation
    fingerprint: str = ""  # of an evaluation's settings

    def to_json(self) -> dict[str, Any]:
        row: dict[str, Any] = {"step": self.step}
        if self.credits is not None:
            row["advantages"] = [asdict(credit) for credit in self.credits]
        if self.fingerprint:
            row["fingerprint"] = self.fingerprint
        return row | self.trajectory.to_json()


def append_trajectories(path: Path, logged: list[LoggedTrajectory]) -> None:
    """Add lines to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for entry in logged:
            file.write(json.dumps(entry.to_json()) + "\n")


def read_log(path: Path) -> Iterator[LoggedTrajectory]:
    """The lines of a file in order, one at a time: the latents of a long run do not fit in memory together.

    A last line without its end, which a killed run leaves, is not read.

    Raises:
        TrajectoryLogError: a line that is not a trajectory.
    """
    with path.open(encoding="utf-8", newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith("\n"):
                return
            try:
                row = json.loads(line)
                advantages = row.get("advantages")
                yield LoggedTrajectory(
                    Trajectory.from_json({key: value for key, value in row.items() if key in _FIELDS}),
                    row.get("step", 0),
                    None if advantages is None else [Credit(**turn) for turn in advantages],
                    row.get("fingerprint", ""),
                )
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise TrajectoryLogError(
                    f"{path}:{number}: not a trajectory ({error!r}); delete the line to go on"
                ) from error


def read_trajectories(path: Path) -> list[Trajectory]:
    """All trajectories of a file."""
    return [logged.trajectory for logged in read_log(path)]
