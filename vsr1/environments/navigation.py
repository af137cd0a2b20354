"""Answers to questions about one long film, see `vsr1.navigate`."""

from __future__ import annotations

from typing import Any

from vsr1.config import Config
from vsr1.environments.spec import EnvironmentSpec, Evaluated, EvaluationQuery, Rows
from vsr1.episode.sample import FailedSample, SampleId
from vsr1.formats.dataset import TRAIN, DatasetFolder
from vsr1.navigate.files import Question, questions_file, read_questions, records_file
from vsr1.navigate.record import NavigateTask, drawn_budget, is_right
from vsr1.navigate.rewards import NavigateRewards
from vsr1.navigate.summary import (
    NavigateRow,
    NavigateSummary,
    failed_navigate_row,
    navigate_row,
    summarise_navigation,
)


def toy_splits(config: Config) -> dict[str, int]:
    """Return the number of films of each split of the long toy world."""
    toy = config.toy
    return {TRAIN: toy.train, "test": toy.test} | ({"val": toy.val} if toy.val else {})


def _is_built(config: Config) -> bool:
    folder = DatasetFolder(config.data.root)
    return all(questions_file(folder, split).is_file() for split in toy_splits(config))


def _training_rows(config: Config) -> Rows:
    return [question.model_dump() for question in read_questions(NAVIGATION.training_file(config))]


def _training_task(row: dict[str, Any], config: Config, place: str, is_helped: bool) -> NavigateTask:
    """Return the task of a question, with the budget that its prompt id draws for the whole group."""
    question = Question.model_validate(row)
    prompt = place + question.question_id
    return question.task(SampleId(prompt), drawn_budget(config.navigate.budgets, config.seed, prompt))


def _evaluation_queries(config: Config, split: str) -> list[EvaluationQuery]:
    """Return each question with each of `navigate.eval_budgets`."""
    questions = read_questions(questions_file(DatasetFolder(config.data.root), split))[: config.eval.limit]
    tasks = [
        question.task(SampleId(f"{question.question_id}@{budget:g}"), budget)
        for question in questions
        for budget in config.navigate.eval_budgets
    ]
    return [EvaluationQuery(index, task) for index, task in enumerate(tasks)]


def _scored(config: Config, of: Evaluated) -> tuple[list[NavigateRow], NavigateSummary]:
    outcomes: Any = [of.outcomes[query.task.id.prompt] for query in of.queries]
    rows = [
        failed_navigate_row(query.task, outcome) if isinstance(outcome, FailedSample) else navigate_row(outcome)
        for query, outcome in zip(of.queries, outcomes, strict=True)
    ]
    return rows, summarise_navigation(rows)


def _settings(config: Config, is_training: bool) -> dict[str, Any]:
    unused = {"pools", "eval_budgets" if is_training else "budgets"}
    return {"navigate": config.navigate.model_dump(mode="json", exclude=unused)}


NAVIGATION = EnvironmentSpec(
    summary=NavigateSummary,
    sft_file=lambda config: records_file(DatasetFolder(config.data.root)),
    training_file=lambda config: questions_file(DatasetFolder(config.data.root), TRAIN),
    is_built=_is_built,
    training_rows=_training_rows,
    training_task=_training_task,
    evaluation_queries=_evaluation_queries,
    rewards=lambda config: NavigateRewards(config.navigate.rewards),
    succeeded=is_right,
    scored=_scored,
    figures=lambda summary: {"accuracy": summary.accuracy},
    settings=_settings,
    has_films=True,
)
