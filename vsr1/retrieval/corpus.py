"""The corpus as rows: videos are numbered by sorted id, so ties broken by row number are ties broken by id.

Everything downstream of this file (shards, merge, exclusions) works on these int64 rows. The order of the rows in the
embedding file does not matter; it is read through `docid2row.json` only.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vsr1.retrieval.request import RetrievalError


@dataclass(frozen=True)
class Catalogue:
    """The ids of a corpus and the stamp of its content; the vectors are with the shards."""

    video_ids: list[str]  # sorted; row i is video_ids[i]
    dim: int
    version: str  # first 16 hex digits of sha256 over ids and vectors
    _rows: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_rows", {video_id: row for row, video_id in enumerate(self.video_ids)})

    def __len__(self) -> int:
        return len(self.video_ids)

    def rows(self, video_ids: list[str], role: str) -> np.ndarray:
        """Rows of some videos, int64 [n].

        Raises:
            RetrievalError: ids that are not in the corpus, named with the `role` they were given in.
        """
        unknown = [video_id for video_id in video_ids if video_id not in self._rows]
        if unknown:
            more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
            raise RetrievalError(
                f"{role}: {', '.join(repr(video_id) for video_id in unknown[:5])}{more} not in the corpus of "
                f"{len(self)} videos, index {self.version}; search the split the query belongs to"
            )
        return np.array([self._rows[video_id] for video_id in video_ids], np.int64)

    def bounds(self, shards: int) -> list[tuple[int, int]]:
        """First row and end row of each shard; sizes differ by at most one.

        Raises:
            RetrievalError: more shards than videos.
        """
        if shards > len(self):
            raise RetrievalError(
                f"retrieval.shards={shards} is more than the {len(self)} videos of the corpus; lower it"
            )
        edges = [len(self) * i // shards for i in range(shards + 1)]
        return list(itertools.pairwise(edges))


def load_corpus(embeddings: Path, docid2row: Path) -> tuple[Catalogue, np.ndarray]:
    """Read a corpus (files of data-eval.md §1) into a catalogue and unit vectors, float32 [n, dim], in row order.

    Raises:
        RetrievalError: a file is missing or malformed, the two disagree, a vector has no direction, or there are fewer
            than two videos.
    """
    for path in (embeddings, docid2row):
        if not path.is_file():
            raise RetrievalError(f"corpus file {path} does not exist; build the dataset, embeddings included, first")
    positions = json.loads(docid2row.read_text(encoding="utf-8"))
    stored = np.load(embeddings)
    if not isinstance(positions, dict) or stored.ndim != 2 or not np.issubdtype(stored.dtype, np.floating):
        raise RetrievalError(
            f"{docid2row} must map video ids to rows and {embeddings} must be a float array [videos, dim], "
            f"not {stored.dtype} {stored.shape}"
        )
    if sorted(positions.values()) != list(range(len(stored))):
        raise RetrievalError(
            f"{docid2row} must name each of the {len(stored)} rows of {embeddings} once, but it holds "
            f"{len(positions)} ids that cover {len(set(positions.values()))} rows; embed the corpus again"
        )
    if len(stored) < 2:
        raise RetrievalError(f"{embeddings} holds {len(stored)} videos; a search needs at least 2")
    video_ids = sorted(positions)
    vectors = stored[[positions[video_id] for video_id in video_ids]].astype(np.float32)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    bad = [video_ids[row] for row in np.flatnonzero(~np.isfinite(norms[:, 0]) | (norms[:, 0] == 0))]
    if bad:
        raise RetrievalError(f"{embeddings}: vectors of {bad[:5]} are zero or not finite; embed these videos again")
    vectors = vectors / norms
    digest = hashlib.sha256(json.dumps(video_ids).encode())
    digest.update(vectors.tobytes())
    return Catalogue(video_ids, vectors.shape[1], digest.hexdigest()[:16]), vectors
