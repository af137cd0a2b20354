"""Which metrics a report shows, in which order and how a number is written; the page and the terminal share it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from rich.table import Table
from rich.text import Text

from vsr1.metrics.summary import EvalSummary, RetrievalScores
from vsr1.report.rows import Row

DASH = "\u2013"  # between the ends of a range
Trend = Literal["better", "worse", "same", "neutral"]
Intervals = Mapping["MetricRow", tuple[float, float]]  # the ends in 0..1


@dataclass(frozen=True)
class MetricRow:
    """One line of the metric table; a share is written in percent, any other value as it is."""

    group: str
    label: str
    read: Callable[[EvalSummary], float | None]  # None: not recorded
    share: bool = True
    in_terminal: bool = True
    of_query: Callable[[Row], float] | None = None  # what `read` is the mean of, where the page gives its interval


@dataclass(frozen=True)
class Cell:
    """A value as text, its change from the evaluation to its left ("" in the first column), its interval or ""."""

    value: str
    change: str
    trend: Trend
    interval: str = ""


def _retrieval(
    group: str, of: Callable[[EvalSummary], RetrievalScores], is_first: Callable[[Row], float]
) -> list[MetricRow]:
    return [
        MetricRow(group, "R@1", lambda s: of(s).recall_at_1, of_query=is_first),
        MetricRow(group, "R@5", lambda s: of(s).recall_at_5),
        MetricRow(group, "R@10", lambda s: of(s).recall_at_10),
        MetricRow(group, "R@100", lambda s: of(s).recall_at_100, in_terminal=False),
        MetricRow(group, "MRR", lambda s: of(s).mrr, in_terminal=False),
    ]


_MOMENT = "Moment retrieval (VCMR)"
_VERDICT = "Verification accuracy"
_COST = "Cost per query"

_STYLES: dict[Trend, str] = {"better": "green", "worse": "red", "same": "dim", "neutral": "dim"}

METRIC_ROWS = (
    *_retrieval("Video retrieval, engine alone", lambda s: s.engine, lambda row: row["first_rank"] == 1),
    *_retrieval("Video retrieval, after refinement", lambda s: s.refined, lambda row: row["last_rank"] == 1),
    MetricRow(_MOMENT, "IoU ≥ 0.3", lambda s: s.moments.iou_03),
    MetricRow(_MOMENT, "IoU ≥ 0.5", lambda s: s.moments.iou_05, of_query=lambda row: row["iou"] >= 0.5),
    MetricRow(_MOMENT, "IoU ≥ 0.7", lambda s: s.moments.iou_07),
    MetricRow(_MOMENT, "mean IoU", lambda s: s.moments.mean_iou, in_terminal=False, of_query=lambda row: row["iou"]),
    MetricRow(
        _VERDICT, "last turn", lambda s: s.verification_final.accuracy, of_query=lambda row: row["turns"][-1]["correct"]
    ),
    MetricRow(_VERDICT, "all turns", lambda s: s.verification_all_turns.accuracy, in_terminal=False),
    MetricRow(_COST, "latent tokens", lambda s: s.latent_tokens_per_query, share=False),
    MetricRow(_COST, "text tokens", lambda s: s.text_tokens_per_query, share=False),
    MetricRow(_COST, "turns", lambda s: s.turns_per_query, share=False),
)


def cells(row: MetricRow, evaluations: Iterable[EvalSummary], intervals: Sequence[Intervals] = ()) -> list[Cell]:
    """Return the row's cell in each evaluation.

    A cost never counts as better or worse: it buys the quality above it.

    Args:
        intervals: of each evaluation, see `figures.intervals`; may be left out.
    """
    result: list[Cell] = []
    before: float | None = None
    digits, unit, scale = (1, " %", 100.0) if row.share else (2, "", 1.0)
    for position, summary in enumerate(evaluations):
        value = row.read(summary)
        if value is None:
            result.append(Cell("not recorded", "", "neutral"))
            before = None
            continue
        value *= scale
        change = ""
        trend: Trend = "neutral"
        if before is not None:
            difference = round(value - before, digits)
            change = f"{difference:+.{digits}f}" if difference else "±0"
            quality: Trend = "better" if difference > 0 else "worse"
            trend = "same" if not difference else quality if row.share else "neutral"
        ends = intervals[position].get(row) if intervals else None
        interval = f"{100 * ends[0]:.1f}{DASH}{100 * ends[1]:.1f}" if ends else ""
        result.append(Cell(f"{value:.{digits}f}{unit}", change, trend, interval))
        before = value
    return result


def metric_table(evaluations: dict[str, EvalSummary]) -> Table:
    """Return a table of evaluations by label, in the order given."""
    table = Table(caption=", ".join(f"{label}: {item.queries} queries" for label, item in evaluations.items()))
    table.add_column("metric")
    for label in evaluations:
        table.add_column(Text(label), justify="right")
    for _, group in groupby((row for row in METRIC_ROWS if row.in_terminal), key=lambda row: row.group):
        for row in group:
            table.add_row(f"{row.group}: {row.label}", *map(_text, cells(row, evaluations.values())))
        table.add_section()
    return table


def _text(cell: Cell) -> Text:
    text = Text(cell.value)
    return text.append(f" {cell.change}", style=_STYLES[cell.trend]) if cell.change else text
