"""What a search asks, what it answers and how it fails.

A search answers in full or raises `RetrievalError`; only a request that allows it gets a partial answer, which names
the shards that are missing. `retrieved` has min(k, videos not excluded) entries: of a full answer it is empty only when
everything is excluded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from vsr1.video.clips import Clip


class RetrievalError(RuntimeError):
    """A search, or a corpus, that cannot be answered or served; the message names the part at fault."""


class SearchTimeoutError(RetrievalError):
    """A search got no answer before its deadline."""


class UnknownVideoError(RetrievalError):
    """A request names a video that is not in the corpus."""


class QueryEmbedder(Protocol):
    """What the search needs of an embedder; `vsr1.model.embedder.Embedder` is the one in use."""

    dim: int
    fingerprint: str

    def embed_queries(self, queries: list[str], soft_tokens: list[np.ndarray | None] | None = None) -> np.ndarray:
        """Return unit vectors, float32 [n, dim], of n texts with optional soft tokens, float32 [N, dim] each."""


class ClipEmbedder(QueryEmbedder, Protocol):
    """What adding videos needs too."""

    def embed_clips(self, clips: list[Clip]) -> np.ndarray:
        """Return unit vectors, float32 [n, dim], of n clips."""


@dataclass(frozen=True)
class SearchRequest:
    """Either a text, with soft tokens if it was refined, or a ready vector.

    Raises:
        RetrievalError: neither or both of text and vector, soft tokens without a text, or k below 1.
    """

    query: str | None = None
    soft_tokens: np.ndarray | None = None  # [N, dim] float32
    vector: np.ndarray | None = None  # [dim]; only its direction counts
    k: int = 10
    exclude: list[str] = field(default_factory=list)  # never in `retrieved`; no effect on rank and scores
    rank_of: str | None = None
    scores_of: list[str] = field(default_factory=list)
    index_version: str | None = None  # the corpus as of that version; None: as it is now
    partial: bool = False  # while a shard is missing, take what the others find instead of waiting for it

    def __post_init__(self) -> None:
        if (self.query is None) == (self.vector is None):
            raise RetrievalError("a search needs either a query text or a vector, not both and not neither")
        if self.soft_tokens is not None and self.query is None:
            raise RetrievalError("soft tokens go into a query text; a search by vector cannot take them")
        if self.k < 1:
            raise RetrievalError(f"a search for k={self.k} videos asks for nothing; k must be at least 1")


@dataclass(frozen=True)
class SearchResult:
    """The answer to one `SearchRequest`. Scores are inner products of unit vectors.

    With `missing` shards it covers the others only: no rank, and no scores of videos there.
    """

    retrieved: list[tuple[str, float]]  # by (-score, id)
    rank_of: int | None  # among all videos, nothing excluded, 1 is best, ties by id; None if not asked
    scores: dict[str, float]  # of `scores_of`
    index_version: str
    query_vector: np.ndarray  # [dim] float32, unit length
    missing: list[str] = field(default_factory=list)


def vector_problem(vector: np.ndarray, dim: int) -> str | None:
    """Return why a vector has no direction to search in, None if it has one."""
    if vector.shape != (dim,):
        return f"has shape {vector.shape}, not ({dim},)"
    if not np.isfinite(vector).all():
        return "is not finite"
    return None if np.any(vector) else "is all zeros"
