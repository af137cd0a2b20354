"""What an evaluation of navigation is worth: accuracy and calls by budget, one question played with each of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import Any, Literal

from pydantic import BaseModel
from rich.table import Table

from vsr1.episode.sample import FailedSample
from vsr1.navigate.record import NavigateTask, NavigateTrajectory, is_right, spent, visited
from vsr1.navigate.rewards import location
from vsr1.navigate.tree import Node


class NavigateRow(BaseModel):
    """One question under one budget; one that could not be played counts as a wrong answer."""

    qid: str  # prompt id: question and budget
    question_id: str
    budget: float
    status: Literal["ok", "failed"] = "ok"
    reason: str = ""
    message: str = ""
    answer: str = ""
    right: bool = False
    abstained: bool = False
    end_reason: str = ""
    calls: int = 0
    spent: float = 0.0
    visual_tokens: int = 0
    location: float = 0.0
    reward: float = 0.0
    nodes: list[Node] = []
    statuses: dict[str, int] = {}


class BudgetFigures(BaseModel):
    """Means over the questions that were asked with one budget."""

    questions: int
    accuracy: float
    abstained: float
    calls: float
    spent: float
    location: float
    reward: float


class NavigateSummary(BaseModel):
    """What the rows come to, by budget."""

    questions: int
    failed: dict[str, int]  # by reason
    budgets: dict[str, BudgetFigures]
    statuses: dict[str, int]
    settings: dict[str, Any] = {}

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return self.model_dump(mode="json")

    @property
    def accuracy(self) -> float:
        """Return the mean over the budgets."""
        return fmean(figures.accuracy for figures in self.budgets.values())

    def table(self) -> Table:
        """Return a table with a row a budget."""
        table = Table("budget", "questions", "accuracy", "abstained", "calls", "location", "reward")
        for budget, one in self.budgets.items():
            shares = (f"{one.accuracy:.1%}", f"{one.abstained:.1%}", f"{one.calls:.2f}", f"{one.location:.2f}")
            table.add_row(budget, str(one.questions), *shares, f"{one.reward:.3f}")
        return table


def navigate_row(trajectory: NavigateTrajectory) -> NavigateRow:
    """Return the row of an episode."""
    task, last = trajectory.task, trajectory.last.record
    turns = [turn.record for turn in trajectory.turns]
    return NavigateRow(
        qid=task.id.prompt,
        question_id=task.question_id,
        budget=task.budget,
        answer=last.words if last.status in ("answered", "abstained") else "",
        right=is_right(trajectory),
        abstained=trajectory.end_reason == "abstained",
        end_reason=trajectory.end_reason,
        calls=sum(turn.status == "ok" for turn in turns),
        spent=spent(trajectory),
        visual_tokens=sum(turn.visual_tokens for turn in turns),
        location=location(task.tree, visited(trajectory), task.clues),
        reward=trajectory.reward,
        nodes=visited(trajectory),
        statuses=Counter(turn.status for turn in turns),
    )


def failed_navigate_row(task: NavigateTask, outcome: FailedSample) -> NavigateRow:
    """Return the row of a question that could not be played."""
    return NavigateRow(
        qid=task.id.prompt, question_id=task.question_id, budget=task.budget, status="failed",
        reason=outcome.reason, message=outcome.message,
    )  # fmt: skip


def summarise_navigation(rows: Sequence[NavigateRow]) -> NavigateSummary:
    """Return the means of rows by budget; failed ones count as wrong."""
    budgets = {}
    for budget in sorted({row.budget for row in rows}):
        own = [row for row in rows if row.budget == budget]
        budgets[f"{budget:g}"] = BudgetFigures(
            questions=len(own),
            accuracy=fmean(row.right for row in own),
            abstained=fmean(row.abstained for row in own),
            calls=fmean(row.calls for row in own),
            spent=fmean(row.spent for row in own),
            location=fmean(row.location for row in own),
            reward=fmean(row.reward for row in own),
        )
    statuses: Counter[str] = Counter()
    for row in rows:
        statuses.update(row.statuses)
    failed = Counter(row.reason for row in rows if row.status == "failed")
    return NavigateSummary(questions=len(rows), failed=failed, budgets=budgets, statuses=statuses)
