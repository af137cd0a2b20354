"""Evaluations of navigation on the page: accuracy by budget, as a table and a chart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vsr1.navigate.summary import BudgetFigures, NavigateSummary
from vsr1.report.curves import Chart, Line
from vsr1.report.figures import bootstrap_intervals
from vsr1.report.rows import Row


@dataclass(frozen=True)
class Accuracies:
    """An evaluation of navigation: its label, and of each budget its figures with the interval of the accuracy."""

    label: str
    summary: NavigateSummary
    budgets: list[tuple[str, BudgetFigures, tuple[float, float]]]


def accuracies(label: str, summary: NavigateSummary, rows: Sequence[Row]) -> Accuracies:
    """Return what the page shows of an evaluation; `rows` are its own, and a question without one counts as wrong."""
    budgets = []
    for budget, one in summary.budgets.items():
        right = [row["outcome"] == "right answer" for row in rows if f"{row['budget']:g}" == budget]
        right_Q1 = np.array([*right, *[False] * (one.questions - len(right))], np.float64)[:, None]
        [(low, high)] = bootstrap_intervals(right_Q1).tolist()
        budgets.append((budget, one, (low, high)))
    return Accuracies(label, summary, budgets)


def accuracy_chart(evaluations: Sequence[Accuracies]) -> tuple[Chart, list[str]]:
    """Return the chart of accuracy by budget, a line an evaluation, and the budgets, one a place from 0."""
    budgets = sorted({budget for item in evaluations for budget, _, _ in item.budgets}, key=float)
    lines = []
    for number, item in enumerate(evaluations):
        points = [(budgets.index(budget), one.accuracy) for budget, one, _ in item.budgets]
        lines.append(Line(number, points, points[0], points[-1], points[-1]))
    return Chart("accuracy", lines, 0, max(1, len(budgets) - 1), 0.0, 1.0), budgets
