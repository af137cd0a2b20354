"""Optimiser steps on one batch, and the learning rate of each."""

import pytest

from vsr1.rl.schedule import learning_rate, of_all_batches, of_all_steps, optimiser_batches
from vsr1.settings.training import LearnerConfig


def test_one_step_takes_the_batch_as_it_is() -> None:
    assert optimiser_batches([3, 1, 2], 1, 1, ranks=2, seed=0) == [[3, 1, 2]]


def test_every_epoch_trains_each_row_once_in_an_order_of_its_own() -> None:
    steps = optimiser_batches(list(range(10)), 3, 2, ranks=2, seed=5)
    assert [len(step) for step in steps] == [3, 4, 3] * 2
    first, second = ([row for step in half for row in step] for half in (steps[:3], steps[3:]))
    assert sorted(first) == sorted(second) == list(range(10)) and first != second
    assert steps == optimiser_batches(list(range(10)), 3, 2, ranks=2, seed=5)
    assert steps != optimiser_batches(list(range(10)), 3, 2, ranks=2, seed=6)


@pytest.mark.parametrize(("rows", "ranks", "sizes"), [(7, 4, [7]), (8, 4, [4, 4]), (4, 4, [4]), (9, 2, [2, 2, 3, 2])])
def test_no_step_leaves_a_rank_without_a_row(rows: int, ranks: int, sizes: list[int]) -> None:
    assert [len(step) for step in optimiser_batches(list(range(rows)), 4, 1, ranks=ranks, seed=0)] == sizes


def test_the_numbers_of_several_steps_are_those_of_one() -> None:
    steps = [{"loss": 1.0, "gap_max": 2.0, "tokens": 30.0, "kl": 0.5}, {"loss": 3.0, "gap_max": 1.0, "tokens": 10.0}]
    assert of_all_steps(steps) == {"loss": 2.0, "gap_max": 2.0, "tokens": 40.0, "kl": 0.5, "optimiser_steps": 2.0}


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("half_constant", [1, 1, 1, 0.5, 0]),
        ("constant", [1, 1, 1, 1, 1]),
        ("linear", [1, 0.75, 0.5, 0.25, 0]),
        ("cosine", [1, 0.8535534, 0.5, 0.1464466, 0]),
    ],
)
def test_schedules_by_name(schedule: str, factors: list[float]) -> None:
    settings = LearnerConfig.model_validate({"learning_rate": 2.0, "schedule": schedule})
    rates = [learning_rate(settings, 100, progress) for progress in (0, 0.25, 0.5, 0.75, 1)]
    assert rates == pytest.approx([2 * factor for factor in factors])


def test_the_rate_rises_evenly_over_the_first_steps() -> None:
    settings = LearnerConfig.model_validate({"learning_rate": 8.0, "warmup_steps": 4})
    assert [learning_rate(settings, step, 0) for step in (1, 2, 3, 4, 5)] == [2, 4, 6, 8, 8]


def test_evaluated_batches_weigh_by_their_tokens() -> None:
    batches = [{"loss": 1.0, "tokens": 30.0}, {"loss": 3.0, "tokens": 10.0, "retrieval_loss": 0.5}]
    assert of_all_batches(batches) == {"loss": 1.5, "retrieval_loss": 0.5, "tokens": 40.0}
