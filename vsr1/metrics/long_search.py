"""What an evaluation of searches that navigate is worth: the figures of a search, and what it spent, by budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from pydantic import BaseModel
from rich.table import Table

from vsr1.metrics.predictions import PredictionRow
from vsr1.metrics.summary import EvalSummary
from vsr1.search_then_navigate.record import LongSearchTrajectory, calls_of, spent


class BudgetedSearches(BaseModel):
    """The queries that were played with one budget; means over those that did not fail."""

    search: EvalSummary
    calls: float
    spent: float


class LongSearchSummary(BaseModel):
    """What the rows come to, by budget."""

    queries: int
    failed: dict[str, int]  # by reason
    budgets: dict[str, BudgetedSearches]
    settings: dict[str, Any] = {}

    def to_json(self) -> dict[str, Any]:
        """Return plain values, those of a search under the reference's metric names."""
        return self.model_dump(mode="json", by_alias=True)

    @property
    def iou_05(self) -> float:
        """Return the share of moments found, the mean over the budgets."""
        return fmean(one.search.moments.iou_05 for one in self.budgets.values())

    def table(self) -> Table:
        """Return a table with a row a budget."""
        table = Table("budget", "queries", "R@1 before", "R@1 after", "IoU@0.5", "films", "calls", "spent")
        for budget, one in self.budgets.items():
            search = one.search
            shares = (search.engine.recall_at_1, search.refined.recall_at_1, search.moments.iou_05)
            costs = (search.turns_per_query, one.calls, one.spent)
            table.add_row(
                budget, str(search.queries), *(f"{share:.1%}" for share in shares), *(f"{cost:.2f}" for cost in costs)
            )
        return table


def long_search_row(row: PredictionRow, trajectory: LongSearchTrajectory) -> PredictionRow:
    """Return the row of the judgements of an episode with its budget, and what its calls came to."""
    statuses = Counter(turn.record.status for turn in calls_of(trajectory))
    values = {"budget": trajectory.task.budget, "spent": spent(trajectory), "calls": statuses["ok"]}
    return row.model_copy(update=values | {"statuses": dict(statuses)})


def summarise_long_searches(
    searches: Mapping[str, tuple[EvalSummary, list[LongSearchTrajectory]]],
) -> LongSearchSummary:
    """Return the summary of searches and the episodes that were played, by budget."""
    budgets = {
        budget: BudgetedSearches(
            search=summary,
            calls=fmean([sum(turn.record.status == "ok" for turn in calls_of(one)) for one in played] or [0.0]),
            spent=fmean([spent(one) for one in played] or [0.0]),
        )
        for budget, (summary, played) in searches.items()
    }
    failed: Counter[str] = Counter()
    for one in budgets.values():
        failed.update(one.search.failed)
    return LongSearchSummary(
        queries=sum(one.search.queries for one in budgets.values()), failed=failed, budgets=budgets
    )
