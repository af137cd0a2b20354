"""The corpus as rows: videos are numbered by sorted id, so ties broken by row number are ties broken by id.

Everything downstream of this file (shards, merge, exclusions) works on these int64 rows. The order of the rows in the
embedding file does not matter; it is read through `docid2row.json` only.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from vsr1.formats.arrays import read_array
from vsr1.formats.dataset import DatasetFolder
from vsr1.retrieval.request import RetrievalError, UnknownVideoError

UNIT_TOLERANCE = 1e-6  # of a length; rounding a unit vector to float32 moves it less
BLOCK = 4096  # vectors measured at one time
CURRENT = "current.json"  # in the index folder of a dataset that an older version built


@dataclass(frozen=True)
class Catalogue:
    """The ids of a corpus and the stamp of its content; the vectors are with the shards."""

    video_ids: list[str]  # sorted; row i is video_ids[i]
    dim: int
    version: str  # first 16 hex digits of sha256 over ids and vectors

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {video_id: row for row, video_id in enumerate(self.video_ids)}

    def __len__(self) -> int:
        return len(self.video_ids)

    def rows(self, video_ids: list[str], role: str) -> np.ndarray:
        """Return the rows of some videos, int64 [n].

        Raises:
            UnknownVideoError: ids that are not in the corpus, named with the `role` they were given in.
        """
        unknown = [video_id for video_id in video_ids if video_id not in self._rows]
        if unknown:
            more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
            raise UnknownVideoError(
                f"{role}: {', '.join(repr(video_id) for video_id in unknown[:5])}{more} not in the corpus of "
                f"{len(self)} videos, index {self.version}; search the split the query belongs to"
            )
        return np.array([self._rows[video_id] for video_id in video_ids], np.int64)

    def bounds(self, shards: int) -> list[tuple[int, int]]:
        """Return first row and end row of each shard; sizes differ by at most one.

        Raises:
            RetrievalError: more shards than videos.
        """
        if shards > len(self):
            raise RetrievalError(
                f"retrieval.shards={shards} is more than the {len(self)} videos of the corpus; lower it"
            )
        edges = [len(self) * i // shards for i in range(shards + 1)]
        return list(itertools.pairwise(edges))


@dataclass(frozen=True, eq=False)
class Corpus:
    """A corpus as it was read."""

    catalogue: Catalogue
    vectors: np.ndarray  # float32 [n, dim], of length 1, in the catalogue's row order
    embedder: str | None  # fingerprint of the weights that made them; None where the embeddings do not say


def open_corpus(folder: DatasetFolder, split: str) -> Corpus:
    """Read the built corpus of a split.

    Raises:
        RetrievalError: as `load_corpus`, or an older version made another corpus the current one.
    """
    catalogue, vectors = load_corpus(folder.video_embeddings(split), folder.docid2row(split))
    current = folder.at(split, "index", CURRENT)
    if (
        current.is_file()
        and (version := json.loads(current.read_text(encoding="utf-8"))["version"]) != catalogue.version
    ):
        raise RetrievalError(
            f"{current} names index {version}, but {folder.video_embeddings(split)} holds {catalogue.version}: remove "
            f"{CURRENT} to search these"
        )
    settings = folder.embedding_settings(split)
    embedder = json.loads(settings.read_text(encoding="utf-8")).get("embedder") if settings.is_file() else None
    return Corpus(catalogue, vectors, embedder)


def load_corpus(embeddings: Path, docid2row: Path) -> tuple[Catalogue, np.ndarray]:
    """Read prepared embeddings (data-eval.md §1.4) into a catalogue and unit vectors, float32 [n, dim], in row order.

    Raises:
        RetrievalError: a file is missing or malformed, the two disagree, a vector has no direction, or there are fewer
            than two videos.
    """
    for path in (embeddings, docid2row):
        if not path.is_file():
            raise RetrievalError(f"corpus file {path} does not exist; build the dataset, embeddings included, first")
    pairs = json.loads(docid2row.read_text(encoding="utf-8"), object_pairs_hook=list)
    stored = read_array(embeddings, mapped=True)
    is_mapping = isinstance(pairs, list) and all(isinstance(pair, tuple) for pair in pairs)
    if not is_mapping or stored.ndim != 2 or not np.issubdtype(stored.dtype, np.floating):
        raise RetrievalError(
            f"{docid2row} must map video ids to rows and {embeddings} must be a float array [videos, dim], "
            f"not {stored.dtype} {stored.shape}"
        )
    positions = dict(pairs)
    if len(positions) != len(pairs) or sorted(positions.values()) != list(range(len(stored))):
        raise RetrievalError(
            f"{docid2row} must name each of the {len(stored)} rows of {embeddings} once, but it holds {len(pairs)} "
            f"entries, {len(positions)} ids and {len(set(positions.values()))} rows; embed the corpus again"
        )
    return make_catalogue(positions, stored, str(embeddings))


def make_catalogue(rows: dict[str, int], vectors: np.ndarray, origin: str) -> tuple[Catalogue, np.ndarray]:
    """Sort videos by id, bring their vectors to length 1, and stamp the result.

    Args:
        rows: of each video its row of `vectors`, float [n, dim]; rows that no video has are left out.
        origin: where they are from, for messages.

    Returns:
        the catalogue and float32 [videos, dim] in its row order. Vectors that have length 1 keep their bits.

    Raises:
        RetrievalError: a vector without a direction, or fewer than two videos.
    """
    if len(rows) < 2:
        raise RetrievalError(f"{origin} holds {len(rows)} videos; a search needs at least 2")
    video_ids = sorted(rows)
    unit = vectors[[rows[video_id] for video_id in video_ids]].astype(np.float32, copy=False)
    blocks = [unit[first : first + BLOCK] for first in range(0, len(unit), BLOCK)]
    norms = np.concatenate([np.linalg.norm(block, axis=1) for block in blocks])
    bad = [video_ids[row] for row in np.flatnonzero(~np.isfinite(norms) | (norms == 0))]
    if bad:
        raise RetrievalError(f"{origin}: vectors of {bad[:5]} are zero or not finite; embed these videos again")
    away = np.abs(norms - 1) > UNIT_TOLERANCE
    unit[away] /= norms[away, None]
    digest = hashlib.sha256(json.dumps(video_ids).encode())
    digest.update(unit.data)
    return Catalogue(video_ids, unit.shape[1], digest.hexdigest()[:16]), unit
