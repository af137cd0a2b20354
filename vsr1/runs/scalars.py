"""The scalars of a run: for TensorBoard, as JSON lines that the report reads and, if wanted, for Weights & Biases.

A call to `log` writes all of its values or, if one of them is not finite, none and raises. Lines are appended and
flushed at once, so a killed run keeps what it logged; the torn last line that it may leave is not read, and cut off
when the run is resumed. A run that goes on from a step takes those after it again: TensorBoard forgets what was there,
Weights & Biases, which cannot, gets each step once.
"""

from __future__ import annotations

import json
import logging
import math
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from vsr1.formats.atomic import cut_torn_line

SCALARS = "scalars.jsonl"  # in the run's folder
WANDB_ID = "wandb.id"  # there too
NAME = 128  # most characters of a name in Weights & Biases
_FIELDS = {"stage", "step", "name", "value", "time"}


class RunLog(AbstractContextManager["RunLog"]):
    """Writes to `folder`/tensorboard and `folder`/scalars.jsonl; use it as a context manager.

    Args:
        folder: the run's folder, created if missing; an earlier log in it is continued.
        clock: seconds since the epoch, stamped on each line.
        wandb: project of Weights & Biases, in which the run has the name of its folder; None leaves it out.
        after: by stage the step that it goes on from: what an earlier run logged past it leaves TensorBoard.

    Raises:
        TrackingError: Weights & Biases does not take the run.
    """

    def __init__(
        self,
        folder: Path,
        clock: Callable[[], float] = time.time,
        wandb: str | None = None,
        after: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter  # here: it brings all of torch, which a reader does without

        folder.mkdir(parents=True, exist_ok=True)
        path = folder / SCALARS
        cut_torn_line(path)
        self._clock = clock
        self._lines = path.open("a", encoding="utf-8")
        rows = read_scalars(path) if after or wandb else []
        dead = {row["step"] for row in rows if row["step"] > after.get(row["stage"], math.inf)}
        first = min(dead, default=None)
        self._board = SummaryWriter(log_dir=str(folder / "tensorboard"), purge_step=first)
        for row in rows:  # TensorBoard drops what is of this step or later, whatever its stage
            if first is not None and first <= row["step"] <= after.get(row["stage"], math.inf):
                self._add(row)
        self._tracked = _Tracked(wandb, folder, rows) if wandb else None

    def log(self, stage: str, step: int, values: dict[str, float]) -> None:
        """Record named values of one step of one stage ("sft", "grpo", …).

        Raises:
            ValueError: a value is infinite or not a number; nothing of this call is written.
        """
        for name, value in values.items():
            if not math.isfinite(value):
                raise ValueError(f"run log: {stage}/{name} is {value} at step {step}; find the step that produced it")
        now = self._clock()
        for name, value in values.items():
            row = {"stage": stage, "step": step, "name": name, "value": float(value), "time": now}
            self._lines.write(json.dumps(row) + "\n")
            self._add(row)
        self._lines.flush()
        if self._tracked:
            self._tracked.log(stage, step, values)

    def _add(self, row: dict[str, Any]) -> None:
        self._board.add_scalar(f"{row['stage']}/{row['name']}", row["value"], row["step"], walltime=row["time"])

    def __exit__(self, *error: object) -> None:
        """Flush and close both files."""
        self._lines.close()
        self._board.close()
        if self._tracked:
            self._tracked.finish()


class TrackingError(RuntimeError):
    """Weights & Biases does not take a run; the message says why and what to do."""


class _Tracked:
    """A run of Weights & Biases that both stages of a folder share, each with a step of its own.

    It has one id for good, noted in the folder. Without a network each start has another, because a run that is sent
    later would take the place of what an earlier start sent under the same one. A training outlives its tracking.

    Args:
        rows: of the scalars that earlier runs have logged.
    """

    def __init__(self, project: str, folder: Path, rows: list[dict[str, Any]]) -> None:
        import wandb

        self._error = wandb.Error
        self._last: dict[str, int] = {}  # step that was logged, by stage
        for row in rows:
            self._last[row["stage"]] = max(row["step"], self._last.get(row["stage"], row["step"]))
        note = folder / WANDB_ID
        name = note.read_text(encoding="utf-8") if note.is_file() else secrets.token_hex(8)
        place = os.environ.get("WANDB_DIR") or str(folder)  # a user's own, which an argument would overrule
        try:
            self._run = wandb.init(
                project=project, name=folder.name[:NAME], id=name, resume="allow", dir=place, settings={"silent": True}
            )
        except wandb.Error as error:
            raise TrackingError(
                f"Weights & Biases does not take the run (tracking.wandb={project}): {error}; call `wandb login`, set "
                "WANDB_MODE=offline where there is no network, or leave tracking.wandb out"
            ) from error
        if not self._run.offline:
            note.write_text(name, encoding="utf-8")

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Send a step, unless an earlier run has."""
        if self._run is not None and step > self._last.get(stage, -1):
            named = {f"{stage}/{name}": float(value) for name, value in values.items()}
            with self._outlived():
                self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
                self._run.log(named | {f"{stage}/step": step})

    def finish(self) -> None:
        """Send what is left."""
        if self._run is not None:
            with self._outlived():
                self._run.finish()

    @contextmanager
    def _outlived(self) -> Iterator[None]:
        """Run the block, and send no more once the process that W&B keeps for that is gone."""
        try:
            yield
        except (self._error, OSError) as error:
            self._run = None
            logging.getLogger(__name__).error(
                "Weights & Biases is gone (%s); the training goes on, its scalars are in %s", error, SCALARS
            )


class ScalarTail:
    """Reads a `scalars.jsonl` as it grows, each row once; a line is read when it is whole."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset, self._lines = path, 0, 0

    def read(self) -> list[dict[str, Any]]:
        """Return the rows that came since the last call; errors as `read_scalars`."""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            *lines, torn = file.read().split(b"\n")
            self._offset = file.tell() - len(torn)
        rows = []
        for line in lines:
            self._lines += 1
            try:
                row = json.loads(line)
            except ValueError as error:
                place = f"{self._path}:{self._lines}"
                raise ValueError(f"{place}: not a JSON line ({error}); delete the line to go on") from error
            if not isinstance(row, dict) or set(row) != _FIELDS:
                raise ValueError(f"{self._path}:{self._lines}: expected an object with the keys {sorted(_FIELDS)}")
            rows.append(row)
        return rows


def read_scalars(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a `scalars.jsonl` as written: `stage`, `step`, `name`, `value`, `time` (seconds since 1970).

    A resumed run may hold a step twice; the later row is the valid one. The torn last line of a killed run is left out.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line that is not such a row, with its number.
    """
    return ScalarTail(path).read()
