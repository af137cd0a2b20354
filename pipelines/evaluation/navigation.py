"""What an evaluation of navigation writes: a row for each question under each budget, and their summary."""

from __future__ import annotations

from typing import Any

from pipelines.stage.plays import Outcome
from pipelines.stage.tasks import EvaluationQuery
from vsr1.episode.sample import FailedSample
from vsr1.navigate.summary import (
    NavigateRow,
    NavigateSummary,
    failed_navigate_row,
    navigate_row,
    summarise_navigation,
)


def scored_navigation(
    queries: list[EvaluationQuery], outcomes: dict[str, Outcome], settings: dict[str, Any]
) -> tuple[list[NavigateRow], NavigateSummary]:
    """Return the rows in the order of the questions, and their summary."""
    rows = []
    for query in queries:
        task: Any = query.task
        outcome: Any = outcomes[task.id.prompt]
        rows.append(failed_navigate_row(task, outcome) if isinstance(outcome, FailedSample) else navigate_row(outcome))
    return rows, summarise_navigation(rows).model_copy(update={"settings": settings})
