"""What the page draws of one evaluation: where refinement moved the right video, and how well the moments overlap."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from vsr1.report.metric_rows import DASH, METRIC_ROWS, MetricRow
from vsr1.report.rows import Row

IOU_BINS = 10
RESAMPLES = 1000  # of a bootstrap interval
LEAST_SPAN = 30  # ranks that a matrix shows at least, so that those of good evaluations look alike
_SHADES = 5
_RANK_LIMITS = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 100_000, 1_000_000, 10_000_000)


@dataclass(frozen=True)
class RankMatrix:
    """Upper ends of the bands of ranks, about threefold apart as on a logarithmic axis, and `counts[after][before]`."""

    bands: list[str]
    counts: list[list[int]]
    shades: list[list[int]]  # of each count, 0 (none) to `_SHADES`
    better: int  # queries whose rank improved, within a band too
    worse: int
    same: int


def intervals(rows: Sequence[Row], failed: int) -> dict[MetricRow, tuple[float, float]]:
    """Return 95 % bootstrap intervals over the queries of an evaluation, in 0..1, of the metrics that have one.

    Args:
        failed: further queries, which count 0 everywhere.
    """
    metrics = {metric: metric.of_query for metric in METRIC_ROWS if metric.of_query}
    played_QM = np.array([[of_query(row) for of_query in metrics.values()] for row in rows], np.float64)
    ends = bootstrap_intervals(np.pad(played_QM, ((0, failed), (0, 0)))).tolist()
    return {metric: (low, high) for metric, (low, high) in zip(metrics, ends, strict=True)}


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


def rank_matrix(rows: Iterable[Row]) -> RankMatrix:
    """Count queries by the rank of the right video before (engine) and after the last refinement."""
    pairs = [(row["first_rank"], row["last_rank"]) for row in rows]
    worst = max(LEAST_SPAN, *(max(pair) for pair in pairs))
    limits = _RANK_LIMITS[: 1 + bisect_left(_RANK_LIMITS, worst)]
    counts = np.zeros((len(limits), len(limits)), int)
    for before, after in pairs:
        counts[bisect_left(limits, after), bisect_left(limits, before)] += 1
    return RankMatrix(
        bands=["1", *(f"≤\u2009{_short(limit)}" for limit in limits[1:])],
        counts=counts.tolist(),
        shades=((counts > 0) + np.rint((_SHADES - 1) * np.sqrt(counts / counts.max()))).astype(int).tolist(),
        better=sum(after < before for before, after in pairs),
        worse=sum(after > before for before, after in pairs),
        same=sum(after == before for before, after in pairs),
    )


def _short(count: int) -> str:
    return str(count) if count < 1000 else f"{count // 1000}k" if count < 1_000_000 else f"{count // 1_000_000}M"


def iou_bars(rows: Iterable[Row]) -> list[tuple[str, int]]:
    """Count queries by the IoU of their moment, from 0 to 1 with the upper end; a first bar holds those with none."""
    ious = np.array([row["iou"] for row in rows])
    counts, ends = np.histogram(ious[ious > 0], np.arange(IOU_BINS + 1) / IOU_BINS)
    labels = [f"{low:.1f}{DASH}{high:.1f}" for low, high in pairwise(ends)]
    return [("none", int((ious <= 0).sum())), *zip(labels, counts.tolist(), strict=True)]


def turns_counts(rows: Iterable[Row]) -> list[tuple[int, int]]:
    """Return numbers of turns that judged a video, and how many queries took each."""
    return sorted(Counter(sum("verdict" in turn for turn in row["turns"]) for row in rows).items())
