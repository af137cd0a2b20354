"""The metric table for the terminal: one column an evaluation, the change from the column to its left beside it."""

from __future__ import annotations

from itertools import groupby

from rich.table import Table
from rich.text import Text

from vsr1.metrics.summary import EvalSummary
from vsr1.report.metric_rows import METRIC_ROWS, Cell, Trend, cells

_STYLES: dict[Trend, str] = {"better": "green", "worse": "red", "same": "dim", "neutral": "dim"}


def metric_table(evaluations: dict[str, EvalSummary]) -> Table:
    """Return a table of evaluations by label, in the order given.

    Raises:
        ValueError: no evaluations.
    """
    if not evaluations:
        raise ValueError("metric_table: no evaluations were given; evaluate a checkpoint first")
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
