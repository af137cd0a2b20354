"""Which metrics a report shows, in which order and how a number is written; the page and the terminal share it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from vsr1.metrics.summary import EvalSummary

DASH = "\u2013"  # between the ends of a range
Trend = Literal["better", "worse", "same", "neutral"]


@dataclass(frozen=True)
class MetricRow:
    """One line of the metric table; a share is written in percent, any other value as it is."""

    group: str
    label: str
    read: Callable[[EvalSummary], float | None]  # None: not recorded
    share: bool = True
    in_terminal: bool = True
    interval: str = ""  # which of `figures.intervals` belongs to it, if any


@dataclass(frozen=True)
class Cell:
    """A value as text, its change from the evaluation to its left ("" in the first column), its interval or ""."""

    value: str
    change: str
    trend: Trend
    interval: str = ""


_ENGINE = "Video retrieval, engine alone"
_REFINED = "Video retrieval, after refinement"
_MOMENT = "Moment retrieval (VCMR)"
_VERDICT = "Verification accuracy"
_COST = "Cost per query"

METRIC_ROWS = (
    MetricRow(_ENGINE, "R@1", lambda s: s.engine.recall_at_1, interval="engine R@1"),
    MetricRow(_ENGINE, "R@5", lambda s: s.engine.recall_at_5),
    MetricRow(_ENGINE, "R@10", lambda s: s.engine.recall_at_10),
    MetricRow(_ENGINE, "R@100", lambda s: s.engine.recall_at_100, in_terminal=False),
    MetricRow(_ENGINE, "MRR", lambda s: s.engine.mrr, in_terminal=False),
    MetricRow(_REFINED, "R@1", lambda s: s.refined.recall_at_1, interval="refined R@1"),
    MetricRow(_REFINED, "R@5", lambda s: s.refined.recall_at_5),
    MetricRow(_REFINED, "R@10", lambda s: s.refined.recall_at_10),
    MetricRow(_REFINED, "R@100", lambda s: s.refined.recall_at_100, in_terminal=False),
    MetricRow(_REFINED, "MRR", lambda s: s.refined.mrr, in_terminal=False),
    MetricRow(_MOMENT, "IoU ≥ 0.3", lambda s: s.moments.iou_03),
    MetricRow(_MOMENT, "IoU ≥ 0.5", lambda s: s.moments.iou_05, interval="IoU@0.5"),
    MetricRow(_MOMENT, "IoU ≥ 0.7", lambda s: s.moments.iou_07),
    MetricRow(_MOMENT, "mean IoU", lambda s: s.moments.mean_iou, in_terminal=False, interval="mean IoU"),
    MetricRow(_VERDICT, "last turn", lambda s: s.verification_final.accuracy, interval="verification"),
    MetricRow(_VERDICT, "all turns", lambda s: s.verification_all_turns.accuracy, in_terminal=False),
    MetricRow(_COST, "latent tokens", lambda s: s.latent_tokens_per_query, share=False),
    MetricRow(_COST, "text tokens", lambda s: s.text_tokens_per_query, share=False),
    MetricRow(_COST, "turns", lambda s: s.turns_per_query, share=False),
)


def cells(
    row: MetricRow,
    evaluations: Iterable[EvalSummary],
    intervals: Sequence[Mapping[str, tuple[float, float]]] = (),
) -> list[Cell]:
    """The row's cell in each evaluation. A cost never counts as better or worse: it buys the quality above it.

    Args:
        intervals: of each evaluation the ends in 0..1 by name, see `figures.intervals`; may be left out.
    """
    result: list[Cell] = []
    before: float | None = None
    for position, summary in enumerate(evaluations):
        found = row.read(summary)
        if found is None:
            result.append(Cell("not recorded", "", "neutral"))
            before = None
            continue
        value = found * (100.0 if row.share else 1.0)
        digits = 1 if row.share else 2
        text = f"{value:.{digits}f}" + (" %" if row.share else "")
        ends = intervals[position].get(row.interval) if intervals else None
        interval = "" if ends is None else f"{100 * ends[0]:.1f}{DASH}{100 * ends[1]:.1f}"
        if before is None:
            result.append(Cell(text, "", "neutral", interval))
        else:
            change = round(value - before, digits)
            trend: Trend = (
                "same" if change == 0 else "neutral" if not row.share else "better" if change > 0 else "worse"
            )
            result.append(Cell(text, f"{change:+.{digits}f}" if change else "±0", trend, interval))
        before = value
    return result
