"""What of a dataset build is done: steps, and rows of finished work.

A step is run when its inputs or options changed or its outputs are not as it left them. Its record,
`<root>/.vsr1/build/<split>.<step>.json`, is written after its outputs, so the next build of one that was killed goes on
there. Inputs count by content: a file that was written again with the same bytes rebuilds nothing. Work that a step
does piece by piece goes row by row into a journal beside the records.
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

import numpy as np

from pipelines.data.manifest import Announce, BuildError, Row
from vsr1.formats.atomic import json_line, replacing, write_json, write_lines
from vsr1.formats.dataset import DatasetFolder
from vsr1.formats.digest import file_sha256, value_sha256

Files = dict[Path, Any]  # what goes where, by the ending: rows, a JSON value, an array or bytes; None: it is there
Facts = dict[str, Any]  # what a step says of its result, JSON; `rows` is the number of rows it wrote
UNANSWERED = "unanswered"  # a fact: rows that a step asked for in vain; above 0, the next build asks again


@dataclass(frozen=True)
class Step:
    """One step for one split.

    `make` gives the files to write, and facts if these are more than the rows of the first file. `files` and `options`
    are what it is made from. `version` rises when the code makes something else of the same inputs.
    """

    split: str
    name: str
    make: Callable[[], Files | tuple[Files, Facts]]
    files: Sequence[Path] = ()
    options: dict[str, Any] = field(default_factory=dict)
    version: int = 1


@dataclass
class StepReport:
    """What became of a step; `seconds` of wall-clock time, the check of its inputs included."""

    split: str
    name: str
    status: Literal["built", "kept"] = "kept"
    seconds: float = 0.0
    rows: int = 0


class StepLog:
    """Runs steps and remembers them; `reports` holds those of this build in order."""

    def __init__(self, folder: DatasetFolder, announce: Announce) -> None:
        self.reports: list[StepReport] = []
        self._root, self._records, self._announce = folder.root, folder.build_state, announce
        self._digests: dict[tuple[Path, int, int], str] = {}

    @contextmanager
    def only_build(self) -> Iterator[None]:
        """Hold the folder's lock, and remove what killed builds left half-written.

        Raises:
            BuildError: another build has it.
        """
        self._records.mkdir(parents=True, exist_ok=True)
        with (self._records / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BuildError(f"another build of {self._root} is running; wait for it or stop it") from None
            for part in self._root.rglob(".*.part-*"):
                part.unlink(missing_ok=True)
            yield

    @contextmanager
    def reported(self, split: str, name: str) -> Iterator[StepReport]:
        """Report what is done in the block, which says whether it built anything and how many rows there are.

        Raises:
            BuildError: the block could not write a file, as on a full disk.
        """
        report, began = StepReport(split, name), time.monotonic()
        try:
            yield report
        except FileNotFoundError:
            raise
        except (OSError, MemoryError) as error:
            reason = str(error) or "out of memory"
            free = shutil.disk_usage(self._root).free / 2**30
            raise BuildError(
                f"step {name!r} of split {split!r} stopped: {reason}; {free:.1f} GiB are free on the disk of "
                f"{self._root}. Files of earlier builds are whole; mend that and start the build again, it goes on "
                "from here"
            ) from error
        report.seconds = time.monotonic() - began
        self.reports.append(report)

    def run(self, step: Step) -> Facts:
        """Run a step unless it is current, and return its facts; raises as `reported`."""
        with self.reported(step.split, step.name) as report:
            facts = self.current(step)
            if facts is None:
                report.status = "built"
                self._announce(f"{step.split}: {step.name}")
                fingerprint = self._fingerprint(step)
                out = step.make()
                files, facts = out if isinstance(out, tuple) else (out, {"rows": len(next(iter(out.values())))})
                for path, value in files.items():
                    if value is not None:
                        _write(path, value)
                outputs = {path.relative_to(self._root).as_posix(): self._digest(path) for path in files}
                write_json(self._record(step), {"fingerprint": fingerprint, "outputs": outputs, "facts": facts})
            report.rows = facts["rows"]
        return facts

    def current(self, step: Step) -> Facts | None:
        """Return the facts of a step that need not run, None of one that must."""
        path = self._record(step)
        if not path.is_file():
            return None
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["fingerprint"] != self._fingerprint(step) or record["facts"].get(UNANSWERED):
            return None
        outputs = {self._root / name: digest for name, digest in record["outputs"].items()}
        is_whole = all(path.is_file() and self._digest(path) == digest for path, digest in outputs.items())
        return record["facts"] if is_whole else None

    def _record(self, step: Step) -> Path:
        return self._records / f"{step.split}.{step.name}.json"

    def _fingerprint(self, step: Step) -> str:
        files = [[path.name, self._digest(path) if path.is_file() else None] for path in step.files]
        return value_sha256([step.name, step.version, step.options, files])

    def _digest(self, path: Path) -> str:
        stat = path.stat()
        key = (path, stat.st_size, stat.st_mtime_ns)
        if key not in self._digests:
            self._digests[key] = file_sha256(path)
        return self._digests[key]


def _write(path: Path, content: Any) -> None:
    if path.suffix == ".jsonl":
        write_lines(path, content)
    elif path.suffix == ".json":
        write_json(path, content)
    else:
        with replacing(path) as part:
            np.save(part, content, allow_pickle=False) if path.suffix == ".npy" else part.write_bytes(content)


def read_journal(path: Path, key: str) -> dict[str, Row]:
    """Read rows of finished work by their `key`, of several the last; a line that a kill cut off is passed over.

    Raises:
        BuildError: a line that is no such row.
    """
    rows: dict[str, Row] = {}
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            rows[row[key]] = row
        except (ValueError, KeyError, TypeError) as error:
            raise BuildError(f"{path} line {number} is not a row of the journal ({error}); remove that line") from error
    return rows


@contextmanager
def open_journal(path: Path) -> Iterator[Callable[[Row], None]]:
    """Give a function that adds a row to a journal and keeps it at once; first a line that was cut off is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)

        def add(row: Row) -> None:
            file.write(json_line(row))
            file.flush()

        yield add
