"""The metric table for the terminal: one column an evaluation, the change from the column to its left beside it."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from vsr1.metrics.summary import EvalSummary
from vsr1.report.metric_rows import METRIC_ROWS, Cell, Trend, cells

_STYLES: dict[Trend, str] = {"better": "green", "worse": "red", "same": "dim", "neutral": "dim"}


def metric_table(evaluations: dict[str, dict[str, Any]]) -> Table:
    """A table of `EvalSummary.to_json` rows by label, in the order given.

    Raises:
        ValueError: no evaluations.
        pydantic.ValidationError: a row that is not an `EvalSummary`.
    """
    if not evaluations:
        raise ValueError("metric_table: no evaluations were given; evaluate a checkpoint first")
    summaries = {label: EvalSummary.from_json(row) for label, row in evaluations.items()}
    table = Table(caption=", ".join(f"{label}: {s.queries} queries" for label, s in summaries.items()))
    table.add_column("metric")
    for label in summaries:
        table.add_column(Text(label), justify="right")
    rows = [row for row in METRIC_ROWS if row.in_terminal]
    for position, row in enumerate(rows):
        ends_group = position + 1 == len(rows) or rows[position + 1].group != row.group
        texts = [_text(cell) for cell in cells(row, summaries.values())]
        table.add_row(f"{row.group}: {row.label}", *texts, end_section=ends_group)
    return table


def _text(cell: Cell) -> Text:
    text = Text(cell.value)
    return text.append(f" {cell.change}", style=_STYLES[cell.trend]) if cell.change else text
