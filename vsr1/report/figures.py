"""What the page draws of one evaluation: where refinement moved the right video, and how well the moments overlap."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from vsr1.metrics.bootstrap import bootstrap_intervals
from vsr1.report.metric_rows import DASH, METRIC_ROWS, MetricRow
from vsr1.report.rows import Row

IOU_BINS = 10
LEAST_SPAN = 30  # ranks that a matrix shows at least, so that those of good evaluations look alike
_SHADES = 5
_RANK_LIMITS = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 100_000, 1_000_000, 10_000_000)


@dataclass(frozen=True)
class RankCell:
    """How many queries went from one band of ranks (column) to another (row), and its shade, 0 (none) to `_SHADES`."""

    count: int
    shade: int
    trend: str  # better | worse | same


@dataclass(frozen=True)
class RankMatrix:
    """Upper ends of the bands of ranks, about threefold apart as on a logarithmic axis, and `cells[after][before]`."""

    bands: list[str]
    cells: list[list[RankCell]]
    better: int  # queries whose rank improved, within a band too
    worse: int
    same: int


@dataclass(frozen=True)
class Bar:
    """A bar of a histogram: how many queries have an IoU within [low, high), the last bin with its end."""

    label: str
    count: int
    height: float  # of the highest bar, 0..1


def intervals(rows: Sequence[Row], failed: int) -> dict[MetricRow, tuple[float, float]]:
    """Return 95 % bootstrap intervals over the queries of an evaluation, in 0..1, of the metrics that have one.

    Args:
        failed: further queries, which count 0 everywhere.
    """
    metrics = {metric: metric.of_query for metric in METRIC_ROWS if metric.of_query}
    played_QM = np.array([[of_query(row) for of_query in metrics.values()] for row in rows], np.float64)
    ends = bootstrap_intervals(np.pad(played_QM, ((0, failed), (0, 0)))).tolist()
    return {metric: (low, high) for metric, (low, high) in zip(metrics, ends, strict=True)}


def rank_matrix(rows: Iterable[Row]) -> RankMatrix:
    """Count queries by the rank of the right video before (engine) and after the last refinement."""
    pairs = [(row["first_rank"], row["last_rank"]) for row in rows]
    worst = max(LEAST_SPAN, *(max(pair) for pair in pairs))
    limits = _RANK_LIMITS[: 1 + bisect_left(_RANK_LIMITS, worst)]
    counts = Counter((bisect_left(limits, after), bisect_left(limits, before)) for before, after in pairs)
    most = max(counts.values())

    def cell(after: int, before: int) -> RankCell:
        count = counts[after, before]
        shade = 0 if not count else 1 + round((_SHADES - 1) * (count / most) ** 0.5)
        return RankCell(count, shade, "better" if after < before else "worse" if after > before else "same")

    bands = ["1", *(f"≤\u2009{_short(limit)}" for limit in limits[1:])]
    return RankMatrix(
        bands=bands,
        cells=[[cell(after, before) for before in range(len(limits))] for after in range(len(limits))],
        better=sum(after < before for before, after in pairs),
        worse=sum(after > before for before, after in pairs),
        same=sum(after == before for before, after in pairs),
    )


def _short(count: int) -> str:
    return str(count) if count < 1000 else f"{count // 1000}k" if count < 1_000_000 else f"{count // 1_000_000}M"


def iou_bars(rows: Iterable[Row]) -> list[Bar]:
    """Count queries by the IoU of their moment; a first bar holds those with none at all."""
    counts = [0] * (IOU_BINS + 1)
    for row in rows:
        counts[0 if row["iou"] <= 0 else 1 + min(IOU_BINS - 1, int(row["iou"] * IOU_BINS))] += 1
    most = max(counts) or 1
    labels = ["none", *(f"{k / IOU_BINS:.1f}{DASH}{(k + 1) / IOU_BINS:.1f}" for k in range(IOU_BINS))]
    return [Bar(label, count, count / most) for label, count in zip(labels, counts, strict=True)]


def turns_counts(rows: Iterable[Row]) -> list[tuple[int, int]]:
    """Return numbers of turns, and how many queries took each."""
    return sorted(Counter(len(row["turns"]) for row in rows).items())
