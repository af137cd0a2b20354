"""Evaluations under several budgets on the page: accuracy by budget, as a table and a chart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vsr1.metrics.long_search import LongSearchSummary
from vsr1.navigate.summary import BudgetFigures, NavigateSummary
from vsr1.report.curves import Chart, Line
from vsr1.report.figures import bootstrap_intervals
from vsr1.report.rows import Row
from vsr1.search_then_navigate.rewards import RIGHT_IOU


@dataclass(frozen=True)
class Accuracies:
    """An evaluation under several budgets, and of each of them its figures with the interval of the accuracy.

    Attributes:
        note: what counts as right and as abstaining, where these are no answers.
    """

    label: str
    note: str
    failed: Mapping[str, int]
    statuses: Mapping[str, int]
    budgets: list[tuple[str, BudgetFigures, tuple[float, float]]]


def accuracies(label: str, summary: NavigateSummary, rows: Sequence[Row]) -> Accuracies:
    """Return what the page shows of an evaluation; `rows` are its own, and a question without one counts as wrong."""
    budgets = []
    for budget, one in summary.budgets.items():
        right = [row["outcome"] == "right answer" for row in _of_budget(rows, budget)]
        budgets.append((budget, one, _interval(right, one.questions)))
    return Accuracies(label, "", summary.failed, summary.statuses, budgets)


def found_moments(label: str, summary: LongSearchSummary, rows: Sequence[Row]) -> Accuracies:
    """Return the same of searches that navigate: a moment found is right, and a query without one counts 0."""
    budgets = []
    for budget, one in summary.budgets.items():
        own, queries = _of_budget(rows, budget), one.search.queries
        figures = BudgetFigures(
            questions=queries,
            accuracy=one.search.moments.iou_05,
            abstained=sum(row["outcome"] == "not found" for row in own) / queries,
            calls=one.calls,
            spent=one.spent,
            location=sum(row["terms"].get("location", 0.0) for row in own) / queries,
            reward=sum(row["reward"] for row in own) / queries,
        )
        budgets.append((budget, figures, _interval([row["iou"] >= RIGHT_IOU for row in own], queries)))
    statuses = Counter(turn.get("status") or turn["verdict"] for row in rows for turn in row["turns"])
    note = f"accuracy: moments with an IoU of at least {RIGHT_IOU:g}; abstained: no film accepted"
    return Accuracies(label, note, summary.failed, statuses, budgets)


def _of_budget(rows: Sequence[Row], budget: str) -> list[Row]:
    return [row for row in rows if f"{row['budget']:g}" == budget]


def _interval(right: list[bool], count: int) -> tuple[float, float]:
    """Return the interval of a share of `count`, of which those that are not told of are wrong."""
    right_Q1 = np.array([*right, *[False] * (count - len(right))], np.float64)[:, None]
    [(low, high)] = bootstrap_intervals(right_Q1).tolist()
    return low, high


def accuracy_chart(evaluations: Sequence[Accuracies]) -> tuple[Chart, list[str]]:
    """Return the chart of accuracy by budget, a line an evaluation, and the budgets, one a place from 0."""
    budgets = sorted({budget for item in evaluations for budget, _, _ in item.budgets}, key=float)
    lines = []
    for number, item in enumerate(evaluations):
        points = [(budgets.index(budget), one.accuracy) for budget, one, _ in item.budgets]
        lines.append(Line(number, points, points[0], points[-1], points[-1]))
    return Chart("accuracy", lines, 0, max(1, len(budgets) - 1), 0.0, 1.0), budgets
