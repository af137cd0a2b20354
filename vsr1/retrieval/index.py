"""One shard: exact inner-product search over some rows of the corpus, addressed by global row.

The score of a (query, video) pair has the same bits wherever it appears: FAISS's pairwise kernel makes it, one pair at
a time. FAISS's batched search only proposes candidates, because its matrix product gives two copies of one video
different last bits, which would break ties and ranks. The two scores of a pair differ by no more than rounding can make
them, so a result is taken when its last score lies further above what the proposal left out; else more is proposed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np

from vsr1.retrieval.request import RetrievalError

MARGIN = 16  # candidates beyond k; with random vectors few queries need more
GPU_MOST = 2048  # what FAISS finds on a GPU at most
BLOCK = 4096  # rows in one matrix product of a rank count
FLAT = "Flat"


@dataclass(frozen=True, eq=False)
class Ragged:
    """Arrays of any lengths in one piece, so that a batch travels as a few arrays and not as thousands."""

    values: np.ndarray
    ends: np.ndarray  # int64; part i is values[ends[i - 1] : ends[i]]

    @classmethod
    def of(cls, parts: Sequence[np.ndarray]) -> Ragged:
        """Join at least one array, all of one dtype."""
        return cls(np.concatenate(parts), np.cumsum([len(part) for part in parts]))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: int) -> np.ndarray:
        return self.values[self.ends[i - 1] if i else 0 : self.ends[i]]

    @property
    def owners(self) -> np.ndarray:
        """Return the part that each value belongs to, int64."""
        return np.repeat(np.arange(len(self)), np.diff(self.ends, prepend=0))


@dataclass(frozen=True, eq=False)
class ShardQueries:
    """A batch of queries, as a shard sees it."""

    vectors: np.ndarray  # [q, dim] float32
    k: np.ndarray  # [q] int64
    exclude: Ragged  # int64 rows of the whole corpus
    probes: Ragged  # int64 rows of this shard whose scores are wanted


@dataclass(frozen=True, eq=False)
class ShardHits:
    """For each query the best rows of a shard by (-score, row), and the scores of the probes in the order asked."""

    rows: Ragged  # int64
    scores: np.ndarray  # float32, beside `rows.values`
    probe_scores: np.ndarray  # float32, beside `probes.values`


@dataclass(frozen=True)
class RankTarget:
    """A video whose rank is wanted: the query, and the video's score and global row."""

    vector: np.ndarray  # [dim] float32
    score: float
    row: int


class Shard:
    """Some rows of one version of a corpus; they never change.

    With another `factory` than `Flat` the index proposes what it finds, so recall is that of the index; scores, order
    and ranks stay exact.
    """

    def __init__(
        self,
        name: str,
        rows: np.ndarray,
        vectors: np.ndarray,
        *,
        factory: str = FLAT,
        search_params: str = "",
        gpu: bool = False,
    ) -> None:
        """
        Args:
            rows: int64 [n], global and rising. vectors: float32 [n, dim], of length 1.
            factory: a FAISS index factory string. search_params: of that index, as in `nprobe=16`.
            gpu: keep the index on the GPUs that this process sees.

        Raises:
            RetrievalError: an index that FAISS cannot build.
        """
        self.name = name
        self.dim = vectors.shape[-1]
        self._rows = np.ascontiguousarray(rows, np.int64)
        self._vectors = np.ascontiguousarray(vectors, np.float32)
        norms = np.einsum("nd,nd->n", self._vectors, self._vectors)
        # Of two sums of dim products, each off by dim * 2**-24 of the lengths' product at most, in whatever order.
        self._error_bound = (self.dim + 1) * 2.0**-23 * float(np.sqrt(norms.max()))  # times the query's length
        # FAISS takes the matrix product from this many numbers in a batch of queries: here from two queries, where its
        # own limit of 128,000 searches up to 62 of them one by one, eight times slower for 32.
        faiss.cvar.distance_compute_blas_threshold = self.dim + 1
        # Without an index FAISS searches the array itself, which lies in memory once and may be another process's.
        self._index = _build(name, self._vectors, factory, search_params, gpu) if gpu or factory != FLAT else None
        self._gpu, self._is_exact = gpu, factory == FLAT

    def __len__(self) -> int:
        return len(self._rows)

    def search(self, queries: ShardQueries) -> ShardHits:
        """Find for each query the best `k` rows that are not excluded, all of them if there are fewer."""
        vectors = np.ascontiguousarray(queries.vectors, np.float32)
        bounds = self._error_bound * np.linalg.norm(vectors, axis=1)
        excluded = self._excluded(queries.exclude)
        due = np.minimum(queries.k, len(self) - np.array([len(rows) for rows in excluded]))
        rows: list[np.ndarray] = [np.empty(0, np.int64)] * len(vectors)
        scores: list[np.ndarray] = [np.empty(0, np.float32)] * len(vectors)
        width = {i: self._width(count + len(excluded[i]) + MARGIN) for i, count in enumerate(due.tolist()) if count}
        while width:
            for i, (positions, exact, rest) in self._propose(vectors, width, excluded).items():
                is_short = len(exact) < due[i]
                if is_short or (rest is not None and exact[due[i] - 1] <= rest + bounds[i]):
                    width[i] = len(self) if is_short else self._width(8 * width[i])
                else:
                    rows[i], scores[i] = self._rows[positions[: due[i]]], exact[: due[i]]
                    del width[i]
        return ShardHits(Ragged.of(rows), np.concatenate(scores), self._probe_scores(vectors, queries.probes))

    def count_above(self, targets: list[RankTarget]) -> list[int]:
        """Count for each target the rows of this shard that come before it by (-score, row); nothing is excluded."""
        vectors = np.stack([target.vector for target in targets])
        bounds = (self._error_bound * np.linalg.norm(vectors, axis=1))[:, None]
        scores = np.array([target.score for target in targets], np.float32)
        counts = np.zeros(len(targets), np.int64)
        for first in range(0, len(self), BLOCK):
            above_TB = vectors @ self._vectors[first : first + BLOCK].T - scores[:, None]
            counts += np.count_nonzero(above_TB > bounds, axis=1)
            close_TB = np.abs(above_TB) <= bounds
            for i in np.flatnonzero(close_TB.any(axis=1)):
                positions = first + np.flatnonzero(close_TB[i])
                exact = self._pair_scores(vectors[i : i + 1], positions[None])[0]
                is_tied = (exact == scores[i]) & (self._rows[positions] < targets[i].row)
                counts[i] += np.count_nonzero((exact > scores[i]) | is_tied)
        return counts.tolist()

    def _width(self, wanted: int) -> int:
        """Return how many candidates are asked for: all where FAISS would not find so many."""
        return len(self) if wanted > len(self) or (self._gpu and wanted > GPU_MOST) else wanted

    def _propose(
        self, vectors: np.ndarray, width: dict[int, int], excluded: list[np.ndarray]
    ) -> dict[int, tuple[np.ndarray, np.ndarray, np.float32 | None]]:
        """Propose candidates for each query named in `width`, about as many as it says, without what is excluded.

        Returns:
            of each query: positions int64 [n] in the shard, best first; their exact scores float32 [n]; and the score
            that FAISS gives to the last, None where nothing that counts was left out.
        """
        groups: dict[tuple[int, int], list[int]] = {}
        for i, count in width.items():  # together if the widths are alike, alone if all rows are needed
            groups.setdefault((i + 1 if count == len(self) else 0, count.bit_length()), []).append(i)
        candidates: dict[int, tuple[np.ndarray, np.ndarray, np.float32 | None]] = {}
        for members in groups.values():
            queries, count = vectors[members], max(width[i] for i in members)
            if count == len(self):
                positions_QK, rest = np.arange(count)[None], [None]
            else:
                proposed_QK, positions_QK = self._nearest(queries, count)
                rest = list(proposed_QK[:, -1]) if self._is_exact else [None] * len(members)
            scores_QK = self._pair_scores(queries, positions_QK)
            order_QK = np.lexsort((positions_QK, -scores_QK), axis=1)
            positions_QK = np.take_along_axis(positions_QK, order_QK, axis=1)
            scores_QK = np.take_along_axis(scores_QK, order_QK, axis=1)
            is_padded = bool((positions_QK < 0).any())
            for i, positions, scores, last in zip(members, positions_QK, scores_QK, rest, strict=True):
                if is_padded or len(excluded[i]):
                    is_allowed = (positions >= 0) & ~np.isin(positions, excluded[i])
                    positions, scores = positions[is_allowed], scores[is_allowed]
                candidates[i] = positions, scores, last
        return candidates

    def _nearest(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the scores and positions, both [q, count], that FAISS finds for queries [q, dim]."""
        if self._index is not None:
            return self._index.search(queries, count)
        scores, positions = np.empty((len(queries), count), np.float32), np.empty((len(queries), count), np.int64)
        query, vector, score, position = map(faiss.swig_ptr, (queries, self._vectors, scores, positions))
        faiss.knn_inner_product(query, vector, self.dim, len(queries), len(self), count, score, position)
        return scores, positions

    def _probe_scores(self, vectors: np.ndarray, probes: Ragged) -> np.ndarray:
        positions, _ = self._find(probes.values)
        return self._pair_scores(vectors[probes.owners], positions[:, None])[:, 0]

    def _pair_scores(self, vectors: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Return the scores of positions [q, n] for queries [q, dim], pair by pair; -inf where a position is -1."""
        positions = np.ascontiguousarray(positions, np.int64)
        scores = np.empty(positions.shape, np.float32)
        if positions.size:
            pointers = map(faiss.swig_ptr, (scores, vectors, self._vectors, positions))
            faiss.fvec_inner_products_by_idx(*pointers, self.dim, *positions.shape)  # type: ignore[attr-defined]
        return scores

    def _find(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the positions of global rows in this shard, and whether it holds them."""
        positions = np.searchsorted(self._rows, rows).clip(max=len(self) - 1)
        return positions, self._rows[positions] == rows

    def _excluded(self, exclude: Ragged) -> list[np.ndarray]:
        """Return for each query the positions in this shard that it excludes."""
        positions, is_held = self._find(exclude.values)
        positions, owners = positions[is_held], exclude.owners[is_held]
        if not len(positions):
            return [positions] * len(exclude)
        return [np.unique(positions[owners == i]) for i in range(len(exclude))]


def _build(name: str, vectors: np.ndarray, factory: str, search_params: str, gpu: bool) -> faiss.Index:
    if gpu and not hasattr(faiss, "StandardGpuResources"):
        raise RetrievalError(
            f"{name}: FAISS {faiss.__version__} of {Path(faiss.__file__).parent} has no GPU support; name one that "
            "has in retrieval.shard.faiss (docs/cluster.md, GPUs), or set cluster.shard.gpus=0"
        )
    if gpu and not faiss.get_num_gpus():  # type: ignore[attr-defined]
        raise RetrievalError(f"{name}: FAISS sees no GPU on this node; see `nvidia-smi`, or set cluster.shard.gpus=0")
    try:
        index = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        if gpu:
            index = faiss.index_cpu_to_all_gpus(index)
        index.train(vectors)
        index.add(vectors)
        if search_params:
            faiss.ParameterSpace().set_index_parameters(index, search_params)  # type: ignore[arg-type]
    except RuntimeError as error:
        raise RetrievalError(
            f"{name}: FAISS cannot build retrieval.index={factory!r} over {len(vectors)} vectors ({error})"
        ) from error
    return index


def merge_hits(parts: Sequence[ShardHits], k: np.ndarray) -> tuple[Ragged, np.ndarray]:
    """Merge for each query the best k of all shards by (-score, row), fewer only if the shards hold fewer.

    Args:
        parts: of at least one shard, all for the same queries. k: [q] int64.

    Returns:
        rows, int64, and beside their values the scores, float32.
    """
    owners = np.concatenate([part.rows.owners for part in parts])
    rows = np.concatenate([part.rows.values for part in parts])
    scores = np.concatenate([part.scores for part in parts])
    order = np.lexsort((rows, -scores, owners))
    counts = np.bincount(owners, minlength=len(k))
    starts = np.cumsum(counts) - counts
    is_kept = np.arange(len(order)) - starts[owners[order]] < k[owners[order]]
    order = order[is_kept]
    return Ragged(rows[order], np.cumsum(np.minimum(counts, k))), scores[order]
