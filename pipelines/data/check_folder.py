"""Says whether a dataset folder has what training and evaluation read, and names what it lacks.

Every count is taken from the files themselves: rows of arrays and of the index from their headers, clips from their
metadata rows and their files. Pixels and vectors are not read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from vsr1.formats.dataset import DatasetFolder
from vsr1.formats.prepared import unpack_dataset
from vsr1.video.clips import ClipError, clip_file, clip_storage, read_meta

TRAIN = "train"
NAMED = 3  # ids in a message


class IncompleteError(ValueError):
    """A dataset folder that lacks something; the message names each thing with its place."""


@dataclass
class SplitCheck:
    """Counts of one split, 0 for a file that is not there."""

    split: str
    queries: int = 0
    clips: int = 0  # with a row and a file that fit together
    video_vectors: int = 0
    docids: int = 0
    index: int = 0
    query_vectors: int = 0
    faults: list[str] = field(default_factory=list)

    def line(self) -> str:
        state = f"{len(self.faults)} faults" if self.faults else "complete"
        return (
            f"{self.split}: {self.queries} queries, {self.clips} clips, vectors of {self.video_vectors} videos "
            f"({self.docids} docids, {self.index} in the index) and {self.query_vectors} queries: {state}"
        )


def unpack_prepared(source: Path, root: Path, splits: list[str], workers: int, progress: Callable[[str], None]) -> None:
    """Unpack a downloaded dataset and check what came out; each split gives a line.

    Raises:
        PreparedError: as `unpack_dataset`.
        IncompleteError: what is there now is not a whole dataset.
    """
    progress(unpack_dataset(source, root, workers, progress).line())
    check_dataset(DatasetFolder(root), splits, progress)


def check_dataset(folder: DatasetFolder, splits: list[str], progress: Callable[[str], None]) -> None:
    """Check splits that a dataset must have, and the training records where "train" is one of them.

    Raises:
        IncompleteError: any file is missing, or two of them disagree.
    """
    checks = [check_split(folder, split) for split in splits]
    for check in checks:
        progress(check.line())
    faults = [f"{check.split}: {fault}" for check in checks for fault in check.faults]
    if TRAIN in splits:
        wanted = (folder.hard_negatives(), folder.sft_records(), folder.grpo_records())
        faults += [f"{path.relative_to(folder.root)} does not exist" for path in wanted if not path.is_file()]
    if faults:
        raise IncompleteError(
            f"{folder.root} is not complete; fetch what is missing, or name the splits to check with --split\n  "
            + "\n  ".join(faults)
        )


def check_split(folder: DatasetFolder, split: str) -> SplitCheck:
    """Counts and faults of one split."""
    check = SplitCheck(split)

    def count(path: Path, of: Callable[[Path], int]) -> int:
        if not path.is_file():
            check.faults.append(f"{path.relative_to(folder.root)} does not exist")
            return 0
        try:
            return of(path)
        except (ValueError, RuntimeError, EOFError) as error:  # what json, numpy and faiss raise on a damaged file
            check.faults.append(f"{path.relative_to(folder.root)} cannot be read: {str(error).splitlines()[0]}")
            return 0

    check.queries = count(folder.annotations(split), _lines)
    check.video_vectors = count(folder.video_embeddings(split), _rows)
    check.docids = count(folder.docid2row(split), _entries)
    check.index = count(folder.index(split), _indexed)
    check.query_vectors = count(folder.query_embeddings(split), _rows)
    query_rows = count(folder.query_meta(split), _lines)
    mapped = count(folder.id_map(split), _entries)
    if len({check.video_vectors, check.docids, check.index, mapped}) > 1:
        check.faults.append(
            f"{check.video_vectors} video vectors, {check.docids} docids, {check.index} in the index and {mapped} in "
            "id_map.json are not one number"
        )
    if check.query_vectors != query_rows:
        check.faults.append(f"{check.query_vectors} query vectors, but {query_rows} rows in their query_meta")
    ids = _ids(folder, split, check)
    check.clips = _check_clips(folder, split, ids, check.faults)
    return check


def _ids(folder: DatasetFolder, split: str, check: SplitCheck) -> set[str]:
    """The corpus's ids; a fault where index and vectors count them in another order."""
    if not (check.docids and check.index and folder.id_map(split).is_file()):
        return set()
    rows: dict[str, int] = json.loads(folder.docid2row(split).read_text(encoding="utf-8"))
    order = json.loads(folder.id_map(split).read_text(encoding="utf-8"))
    if sorted(rows, key=lambda name: rows[name]) != order:
        check.faults.append("docid2row.json and id_map.json name the videos in another order")
    return set(rows)


def _check_clips(folder: DatasetFolder, split: str, ids: set[str], faults: list[str]) -> int:
    """How many clips are usable as far as their headers tell."""
    clips = folder.clips(split)
    try:
        rows = read_meta(clips)
    except ClipError as error:
        faults.append(str(error))
        return 0
    wrong = {name: reason for name, row in rows.items() if (reason := _clip_fault(clips, name, row))}
    if wrong:
        listing = "; ".join(f"{name}: {wrong[name]}" for name in sorted(wrong)[:NAMED])
        faults.append(f"{len(wrong)} of {len(rows)} clips are not usable ({listing})")
    _name(faults, "videos of the corpus have no clip", ids - rows.keys())
    files = {path.stem for path in clips.iterdir() if path.suffix in (".npy", ".mkv") and path.name[0] != "."}
    _name(faults, "clip files have no row in meta.jsonl", files - rows.keys())
    return len(rows) - len(wrong)


def _clip_fault(clips: Path, video_id: str, row: dict[str, Any]) -> str | None:
    path = clip_file(clips, video_id, row)
    if not path.is_file():
        return "no file"
    if clip_storage(row) == "compact":
        return None
    try:
        shape = np.load(path, mmap_mode="r").shape
    except (ValueError, EOFError) as error:
        return f"not a whole array ({error})"
    return None if shape[0] == row["output_num_frames"] else f"{shape[0]} frames, its row says otherwise"


def _name(faults: list[str], what: str, ids: Iterable[str]) -> None:
    found = sorted(ids)
    if found:
        faults.append(f"{len(found)} {what}: {', '.join(found[:NAMED])}{', ...' if len(found) > NAMED else ''}")


def _lines(path: Path) -> int:
    return sum(1 for line in path.read_bytes().split(b"\n") if line.strip())


def _rows(path: Path) -> int:
    return int(np.load(path, mmap_mode="r").shape[0])


def _entries(path: Path) -> int:
    return len(json.loads(path.read_text(encoding="utf-8")))


def _indexed(path: Path) -> int:
    return int(faiss.read_index(str(path), faiss.IO_FLAG_MMAP).ntotal)
