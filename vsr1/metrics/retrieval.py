"""Metrics of the rank of the right video, where 1 is the best rank.

Every function reads one rank a query, refuses an empty list and a rank below 1, and is pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median


def recall_at(ranks: Sequence[int], k: int) -> float:
    """Share of queries whose right video is among the first `k` (VR R@k, data-eval.md §5), in 0..1.

    `k` may exceed the corpus: no rank does, so the result is then 1.

    Raises:
        ValueError: no ranks, a rank below 1, or `k` below 1.
    """
    if k < 1:
        raise ValueError(f"recall_at: k is {k}; it counts videos and starts at 1")
    return fmean(rank <= k for rank in _checked(ranks))


def mrr(ranks: Sequence[int]) -> float:
    """Mean reciprocal rank, in (0, 1]. Raises ValueError on an empty list or a rank below 1."""
    return fmean(1.0 / rank for rank in _checked(ranks))


def mean_rank(ranks: Sequence[int]) -> float:
    """Arithmetic mean of the ranks. Raises ValueError on an empty list or a rank below 1."""
    return fmean(_checked(ranks))


def median_rank(ranks: Sequence[int]) -> float:
    """Median of the ranks, the mean of the middle two for an even count. Raises as `mean_rank` does."""
    return float(median(_checked(ranks)))


def _checked(ranks: Sequence[int]) -> Sequence[int]:
    if not ranks:
        raise ValueError("retrieval metric: no ranks were given; an average over no query is undefined")
    for position, rank in enumerate(ranks):
        if rank < 1:
            raise ValueError(f"retrieval metric: rank {rank} at position {position} is below 1, the best rank")
    return ranks
