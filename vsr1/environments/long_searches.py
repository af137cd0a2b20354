"""Searches that navigate a long video before they judge it, see `vsr1.search_then_navigate`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from vsr1.config import Config
from vsr1.environments.navigation import NAVIGATION
from vsr1.environments.searches import SEARCHES
from vsr1.environments.spec import EnvironmentSpec, Evaluated, EvaluationQuery
from vsr1.episode.trajectory import Trajectory
from vsr1.formats.dataset import DatasetFolder
from vsr1.metrics.long_search import LongSearchSummary, long_search_row, summarise_long_searches
from vsr1.metrics.predictions import PredictionRow
from vsr1.navigate.files import search_records_file
from vsr1.navigate.record import drawn_budget
from vsr1.search.record import SearchTask
from vsr1.search_then_navigate.record import LongSearchTask, LongSearchTrajectory, judgements
from vsr1.search_then_navigate.rewards import SearchThenNavigateRewards


def _budgeted(task: SearchTask, budget: float) -> LongSearchTask:
    return LongSearchTask(**vars(task), budget=budget)


def _sft_file(config: Config) -> Path:
    """Return the records of whole episodes where there are some, else those of a search."""
    path = search_records_file(DatasetFolder(config.data.root))
    return path if path.is_file() else SEARCHES.sft_file(config)


def _training_task(row: dict[str, Any], config: Config, place: str, is_helped: bool) -> LongSearchTask:
    """Return the task of a search, with the budget that its prompt id draws for the whole group."""
    task = SEARCHES.training_task(row, config, place, is_helped)
    return _budgeted(task, drawn_budget(config.navigate.budgets, config.seed, task.id.prompt))


def _evaluation_queries(config: Config, split: str) -> list[EvaluationQuery]:
    """Return the queries with each of `navigate.eval_budgets`, one budget after the other."""
    queries = SEARCHES.evaluation_queries(config, split)
    return [
        replace(query, task=_budgeted(replace(query.task, id=replace(query.task.id, prompt=prompt)), budget))
        for budget in config.navigate.eval_budgets
        for query in queries
        for prompt in [f"{query.task.id.prompt}@{budget:g}"]
    ]


def _is_found(trajectory: LongSearchTrajectory) -> bool:
    return SEARCHES.succeeded(judgements(trajectory))


def _scored(config: Config, of: Evaluated) -> tuple[list[PredictionRow], LongSearchSummary]:
    rows, searches = list[PredictionRow](), {}
    for budget in config.navigate.eval_budgets:
        queries = [query for query in of.queries if query.task.budget == budget]
        played: Any = {
            query.task.id.prompt: outcome
            for query in queries
            if isinstance(outcome := of.outcomes[query.task.id.prompt], Trajectory)
        }
        judged = {prompt: judgements(episode) for prompt, episode in played.items()}
        own, summary = SEARCHES.scored(config, replace(of, queries=queries, outcomes={**of.outcomes, **judged}))
        for query, row in zip(queries, own, strict=True):
            episode = played.get(query.task.id.prompt)
            rows.append(long_search_row(row, episode) if episode else row.model_copy(update={"budget": budget}))
        searches[f"{budget:g}"] = summary, list(played.values())
    return rows, summarise_long_searches(searches)


LONG_SEARCHES = EnvironmentSpec(
    summary=LongSearchSummary,
    sft_file=_sft_file,
    training_file=SEARCHES.training_file,
    is_built=lambda config: SEARCHES.is_built(config) and NAVIGATION.is_built(config),
    training_rows=SEARCHES.training_rows,
    training_task=_training_task,
    evaluation_queries=_evaluation_queries,
    rewards=lambda config: SearchThenNavigateRewards(config.rewards, config.navigate.rewards),
    succeeded=_is_found,
    scored=_scored,
    figures=lambda summary: {"IoU@0.5": summary.iou_05},
    settings=NAVIGATION.settings,
    has_corpus=True,
    has_films=True,
)
