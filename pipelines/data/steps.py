"""Steps of a dataset build: each is run when its inputs or options changed or its outputs are not as it left them.

A step's record, `<root>/.vsr1/build/<split>.<step>.json`, is written after its outputs. A build that is killed leaves
the steps behind it recorded and the one it was in unrecorded, so the next build goes on there. Inputs count by content:
a file that was written again with the same bytes rebuilds nothing.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipelines.data.manifest import BuildError
from vsr1.formats.atomic import write_json
from vsr1.formats.digest import file_sha256, value_sha256

Facts = dict[str, Any]  # what a step says of its result, JSON; `rows` is the number of rows it wrote
UNANSWERED = "unanswered"  # a fact: rows that a step asked for in vain; above 0, the next build asks again
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Step:
    """One step for one split.

    `run` writes every file that `outputs` names afterwards. `version` rises when the code writes something else from
    the same inputs. `by_size` outputs are too large to be read again: size and time of change stand for their content.
    """

    split: str
    name: str
    run: Callable[[], Facts]
    outputs: Callable[[], Sequence[Path]]
    files: Sequence[Path] = ()
    options: dict[str, Any] = field(default_factory=dict)
    version: int = 1
    by_size: bool = False


@dataclass(frozen=True)
class StepReport:
    """What became of a step; `seconds` of wall-clock time, the check of its inputs included."""

    split: str
    name: str
    status: Literal["built", "kept"]
    seconds: float
    rows: int


class StepLog:
    """Runs steps and remembers them; `reports` holds those of this build in order."""

    def __init__(self, root: Path, progress: Progress) -> None:
        self.root = root
        self.folder = root / ".vsr1" / "build"
        self.reports: list[StepReport] = []
        self._say = progress
        self._digests: dict[tuple[Path, int, int], str] = {}

    @contextmanager
    def only_build(self) -> Iterator[None]:
        """Hold the folder's lock, and remove what killed builds left half-written.

        Raises:
            BuildError: another build has it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BuildError(f"another build of {self.root} is running; wait for it or stop it") from None
            for part in self.root.rglob(".*.part-*"):
                part.unlink(missing_ok=True)
            yield

    def run(self, step: Step) -> Facts:
        """Run a step unless it is current.

        Raises:
            BuildError: it could not read or write a file, as on a full disk.
        """
        began = time.monotonic()
        status: Literal["built", "kept"] = "kept"
        facts = self.current(step)
        if facts is None:
            status = "built"
            self._say(f"{step.split}: {step.name}")
            fingerprint = self._fingerprint(step)
            try:
                facts = step.run()
                outputs = {self.name(path): self._state(path, step.by_size) for path in step.outputs()}
                write_json(self._record(step), {"fingerprint": fingerprint, "outputs": outputs, "facts": facts})
            except FileNotFoundError:
                raise
            except OSError as error:
                raise self.unwritten(f"step {step.name!r} of split {step.split!r}", error) from error
        self.reports.append(StepReport(step.split, step.name, status, time.monotonic() - began, facts["rows"]))
        return facts

    def current(self, step: Step) -> Facts | None:
        """The facts of a step that need not run, None of one that must."""
        path = self._record(step)
        if not path.is_file():
            return None
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["fingerprint"] != self._fingerprint(step) or record["facts"].get(UNANSWERED):
            return None
        for name, state in record["outputs"].items():
            if not (self.root / name).is_file() or self._state(self.root / name, step.by_size) != state:
                return None
        return record["facts"]

    def unwritten(self, what: str, error: OSError | str) -> BuildError:
        """The error of a file that could not be written, as on a full disk."""
        free = shutil.disk_usage(self.root).free / 2**30
        return BuildError(
            f"{what} stopped: {error}; {free:.1f} GiB are free on the disk of {self.root}. Files of earlier builds are "
            "whole; mend that and start the build again, it goes on from here"
        )

    def name(self, path: Path) -> str:
        """A path as records hold it: relative to the dataset folder where it lies in it."""
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else path.as_posix()

    def _record(self, step: Step) -> Path:
        return self.folder / f"{step.split}.{step.name}.json"

    def _fingerprint(self, step: Step) -> str:
        files = [[path.name, self._digest(path) if path.is_file() else None] for path in step.files]
        return value_sha256([step.name, step.version, step.options, files])

    def _state(self, path: Path, by_size: bool) -> Any:
        stat = path.stat()
        return [stat.st_size, stat.st_mtime_ns] if by_size else self._digest(path)

    def _digest(self, path: Path) -> str:
        stat = path.stat()
        key = (path, stat.st_size, stat.st_mtime_ns)
        if key not in self._digests:
            self._digests[key] = file_sha256(path)
        return self._digests[key]
