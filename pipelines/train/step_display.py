"""The steps of Stage 1 as the driver shows them, from the scalars that rank 0 logs."""

from __future__ import annotations

from pathlib import Path

from pipelines.stage.progress import Progress
from vsr1.rl.flops import learner_speed
from vsr1.runs.scalars import ScalarTail

LAST_SCALAR = "tokens_per_second"  # of a step, in the order that they are logged


class StepDisplay:
    """Reports the steps that rank 0 logs from now on, each once."""

    def __init__(self, path: Path, progress: Progress) -> None:
        self._path, self._tail, self._progress = path, ScalarTail(path), progress
        self._values: dict[str, float] = {}  # of the step that is being read
        self._ended: float | None = None  # when the last step was logged, seconds since 1970
        if path.is_file():  # what earlier runs have logged
            self._tail.read()

    def update(self) -> None:
        """Report what was logged since the last call."""
        for row in self._tail.read() if self._path.is_file() else []:
            if row["stage"] == "sft":
                self._values[row["name"]] = row["value"]
            if (row["stage"], row["name"]) == ("sft", LAST_SCALAR):
                seconds = {} if self._ended is None else {"step": row["time"] - self._ended}
                shown = {"loss": self._values["loss"]} | learner_speed(self._values)
                self._progress.step(row["step"], shown, seconds)
                self._ended = row["time"]
