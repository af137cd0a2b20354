"""How far a mean over queries would move with other queries of the same kind: percentile bootstrap intervals."""

from __future__ import annotations

import numpy as np

RESAMPLES = 1000


def bootstrap_intervals(
    values: np.ndarray, *, resamples: int = RESAMPLES, level: float = 0.95, seed: int = 0
) -> np.ndarray:
    """Return the interval of the mean over queries of each of M metrics: [M, 2], lower and upper end.

    Queries are drawn with replacement, as many as there are; a draw takes all metrics of a query together. The ends are
    percentiles of the resampled means (Efron and Tibshirani 1993, §13.3). One seed gives one result.

    Args:
        values: float64 [Q, M], a row each query, at least one.
        level: share of the resampled means inside the interval.
    """
    count = len(values)
    generator, even = np.random.default_rng(seed), np.full(count, 1 / count)
    means = [generator.multinomial(count, even) @ values / count for _ in range(resamples)]  # times drawn [Q], values
    tail = 50 * (1 - level)
    return np.percentile(means, [tail, 100 - tail], axis=0).T
