"""Says whether a dataset folder has what evaluation and one stage of training at least read, and names what it lacks.

Every count is taken from the files themselves: rows of arrays and of the index from their headers, clips from their
metadata rows and their files. Pixels and vectors are not read.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss

from pipelines.data.manifest import Announce
from vsr1.formats.annotations import AnnotationError
from vsr1.formats.arrays import read_array
from vsr1.formats.dataset import TRAIN, DatasetFolder
from vsr1.formats.rows import json_rows
from vsr1.video.clips import ClipError, ClipMeta, clip_file, clip_storage, read_meta

NAMED = 3  # ids in a message


class IncompleteError(ValueError):
    """A dataset folder that lacks something; the message names each thing with its place."""


class _FolderCheck:
    def __init__(self, folder: DatasetFolder) -> None:
        self._folder = folder
        self.faults: list[str] = []

    def _read(self, path: Path, reader: Callable[[Path], Any]) -> Any:
        """Return what a reader makes of a file, and 0 and a fault where there is none."""
        name = path.relative_to(self._folder.root)
        if not path.is_file():
            self.faults.append(f"{name} does not exist")
            return 0
        try:
            return reader(path)
        except (ValueError, RuntimeError) as error:  # what json, arrays and faiss raise on a damaged file
            self.faults.append(f"{name} cannot be read: {str(error).splitlines()[0]}")
            return 0


class SplitCheck(_FolderCheck):
    """What one split has, with 0 for a file that is not there, and its faults."""

    def __init__(self, folder: DatasetFolder, split: str) -> None:
        super().__init__(folder)
        self.split = split
        self.queries = self._read(folder.annotations(split), _annotated)
        self.video_vectors = self._read(folder.video_embeddings(split), _rows)
        docids: dict[str, int] = self._read(folder.docid2row(split), _json) or {}
        self.index = self._read(folder.index(split), _indexed)
        self.query_vectors = self._read(folder.query_embeddings(split), _rows)
        query_rows = self._read(folder.query_meta(split), _lines)
        order: list[str] = self._read(folder.id_map(split), _json) or []
        self.docids, mapped = len(docids), len(order)
        if len({self.video_vectors, self.docids, self.index, mapped}) > 1:
            self.faults.append(
                f"{self.video_vectors} video vectors, {self.docids} docids, {self.index} in the index and {mapped} in "
                "id_map.json are not one number"
            )
        if self.query_vectors != query_rows:
            self.faults.append(f"{self.query_vectors} query vectors, but {query_rows} rows in their query_meta")
        if docids and order and self.index and sorted(docids, key=docids.__getitem__) != order:
            self.faults.append("docid2row.json and id_map.json name the videos in another order")
        self.clips = self._usable_clips(set(docids))

    def line(self) -> str:
        """Return one line for a person."""
        state = f"{len(self.faults)} faults" if self.faults else "complete"
        return (
            f"{self.split}: {self.queries} queries, {self.clips} clips, vectors of {self.video_vectors} videos "
            f"({self.docids} docids, {self.index} in the index) and {self.query_vectors} queries: {state}"
        )

    def _usable_clips(self, corpus: set[str]) -> int:
        """Count the clips that are usable as far as their headers tell."""
        clips = self._folder.clips(self.split)
        try:
            rows = read_meta(clips)
        except ClipError as error:
            self.faults.append(str(error))
            return 0
        wrong = {name: reason for name, row in rows.items() if (reason := _clip_fault(clips, name, row))}
        if wrong:
            listing = "; ".join(f"{name}: {wrong[name]}" for name in sorted(wrong)[:NAMED])
            self.faults.append(f"{len(wrong)} of {len(rows)} clips are not usable ({listing})")
        paths = (path.relative_to(clips) for path in clips.rglob("[!.]*") if path.suffix in (".npy", ".mkv"))
        files = {path.with_suffix("").as_posix() for path in paths}
        for what, ids in (
            ("videos of the corpus have no clip", corpus - rows.keys()),
            ("clip files have no row in meta.jsonl", files - rows.keys()),
        ):
            if ids:
                names = ", ".join(sorted(ids)[:NAMED])
                self.faults.append(f"{len(ids)} {what}: {names}{', ...' if len(ids) > NAMED else ''}")
        return len(rows) - len(wrong)


class StagesCheck(_FolderCheck):
    """Which stages of training a dataset serves: labels alone are enough for Stage 2, Stage 1 needs replies too."""

    def __init__(self, folder: DatasetFolder) -> None:
        super().__init__(folder)
        self._records = {
            "Stage 1": self._count(folder.sft_records(), _json_rows, folder.hard_negatives()),
            "Stage 2": self._count(folder.grpo_records(), _lines),
        }

    def line(self) -> str:
        """Return one line for a person."""
        serves = [f"{stage} ({n} record{'' if n == 1 else 's'})" for stage, n in self._records.items() if n]
        lacks = f"; {'; '.join(self.faults)}" if self.faults else ""
        return f"{TRAIN}: serves {' and '.join(serves) or 'no stage of training'}{lacks}"

    @property
    def is_enough(self) -> bool:
        """Tell whether one stage can be trained."""
        return any(self._records.values())

    def _count(self, path: Path, count: Callable[[Path], int], *others: Path) -> int:
        """Return how many records a stage has, 0 where a file that it needs is missing or damaged."""
        before = len(self.faults)
        records: int = self._read(path, count)
        if not records and len(self.faults) == before:
            self.faults.append(f"{path.relative_to(self._folder.root)} has no records")
        for other in others:
            self._read(other, _json)
        return records if len(self.faults) == before else 0


def check_folder(folder: DatasetFolder, splits: list[str], announce: Announce) -> None:
    """Check splits that a dataset must have; where "train" is one of them, one stage at least must have its records.

    Raises:
        IncompleteError: a file is missing, or two of them disagree.
    """
    checks = [SplitCheck(folder, split) for split in splits]
    for check in checks:
        announce(check.line())
    faults = [f"{check.split}: {fault}" for check in checks for fault in check.faults]
    if TRAIN in splits:
        stages = StagesCheck(folder)
        announce(stages.line())
        faults += [] if stages.is_enough else [f"{TRAIN}: {fault}" for fault in stages.faults]
    if faults:
        remedy = "fetch what is missing, or name the splits to check with --split"
        raise IncompleteError("\n  ".join([f"{folder.root} is not complete; {remedy}", *faults]))


def _clip_fault(clips: Path, video_id: str, row: ClipMeta) -> str | None:
    path = clip_file(clips, video_id, row)
    if not path.is_file():
        return "no file"
    if clip_storage(row) == "compact":
        return None
    try:
        shape = read_array(path, mapped=True).shape
    except ValueError as error:
        return f"not a whole array ({error})"
    return None if shape[0] == row["output_num_frames"] else f"{shape[0]} frames, its row says otherwise"


def _annotated(path: Path) -> int:
    return sum(1 for _ in json_rows(path, AnnotationError))


def _lines(path: Path) -> int:
    return sum(1 for line in path.read_bytes().split(b"\n") if line.strip())


def _rows(path: Path) -> int:
    return int(read_array(path, mapped=True).shape[0])


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _json_rows(path: Path) -> int:
    return len(_json(path))


def _indexed(path: Path) -> int:
    return int(faiss.read_index(str(path), faiss.IO_FLAG_MMAP).ntotal)
