"""Metrics of the rank of the right video, where 1 is the best rank, over at least one query.

A query that failed has the rank None: it is found at no K, has the reciprocal rank 0, and takes no part in the mean and
the median.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median

Ranks = Sequence[int | None]


def recall_at(ranks: Ranks, k: int) -> float:
    """Return the share of queries whose right video is among the first `k` (VR R@k, data-eval.md §5), in 0..1.

    `k` may exceed the corpus: no rank does, so the result is then the share of queries with a rank.
    """
    return fmean(rank is not None and rank <= k for rank in ranks)


def mrr(ranks: Ranks) -> float:
    """Return the mean reciprocal rank, in 0..1."""
    return fmean(0.0 if rank is None else 1.0 / rank for rank in ranks)


def mean_rank(ranks: Ranks) -> float | None:
    """Return the mean of the ranks, None without any."""
    known = [rank for rank in ranks if rank is not None]
    return fmean(known) if known else None


def median_rank(ranks: Ranks) -> float | None:
    """Return the median of the ranks, the mean of the middle two for an even count; None without any."""
    known = [rank for rank in ranks if rank is not None]
    return float(median(known)) if known else None
