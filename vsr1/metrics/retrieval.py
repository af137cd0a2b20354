"""Metrics of the rank of the right video, where 1 is the best rank.

Every function reads one rank a query, refuses an empty list and a rank below 1, and is pure. A query that failed has
the rank None: it is found at no K, has the reciprocal rank 0, and takes no part in the mean and the median.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median

Ranks = Sequence[int | None]


def recall_at(ranks: Ranks, k: int) -> float:
    """Return the share of queries whose right video is among the first `k` (VR R@k, data-eval.md §5), in 0..1.

    `k` may exceed the corpus: no rank does, so the result is then the share of queries with a rank.

    Raises:
        ValueError: no ranks, a rank below 1, or `k` below 1.
    """
    if k < 1:
        raise ValueError(f"recall_at: k is {k}; it counts videos and starts at 1")
    return fmean(rank is not None and rank <= k for rank in _checked(ranks))


def mrr(ranks: Ranks) -> float:
    """Return the mean reciprocal rank, in 0..1. Raises ValueError on an empty list or a rank below 1."""
    return fmean(0.0 if rank is None else 1.0 / rank for rank in _checked(ranks))


def mean_rank(ranks: Ranks) -> float | None:
    """Return the mean of the ranks, None without any. Raises ValueError on an empty list or a rank below 1."""
    known = [rank for rank in _checked(ranks) if rank is not None]
    return fmean(known) if known else None


def median_rank(ranks: Ranks) -> float | None:
    """Return the median of the ranks, the mean of the middle two for an even count; otherwise as `mean_rank`."""
    known = [rank for rank in _checked(ranks) if rank is not None]
    return float(median(known)) if known else None


def _checked(ranks: Ranks) -> Ranks:
    if not ranks:
        raise ValueError("retrieval metric: no ranks were given; an average over no query is undefined")
    for position, rank in enumerate(ranks):
        if rank is not None and rank < 1:
            raise ValueError(f"retrieval metric: rank {rank} at position {position} is below 1, the best rank")
    return ranks
