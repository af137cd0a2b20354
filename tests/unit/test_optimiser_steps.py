"""The optimiser steps of one step of Stage 2: none without a row for each rank, and the ratio's policy in several."""

from typing import Any

import pytest

from pipelines.train.grpo import learn
from vsr1.config import Config
from vsr1.rl.batch import Example, Sampled


class Learners:
    """Ranks that note what they are asked; their log-probs are the number of steps taken."""

    ranks = 2

    def __init__(self) -> None:
        self.steps: list[list[Example]] = []
        self.rates: list[float] = []

    def logprobs(self, examples: list[Example]) -> list[list[float]]:
        return [[float(len(self.steps))] for _ in examples]

    def step(self, examples: list[Example], learning_rate: float) -> dict[str, float]:
        self.steps.append(examples)
        self.rates.append(learning_rate)
        return {"loss": 1.0, "tokens": float(len(examples))}


def examples(count: int) -> list[Example]:
    return [Example([1], [number], sampled=Sampled([-0.1], advantage=1.0)) for number in range(count)]


def config(**grpo: Any) -> Config:
    return Config.model_validate({"grpo": {"learner": {"learning_rate": 8.0, "warmup_steps": 4}, **grpo}})


@pytest.mark.parametrize("count", [0, 1])
def test_a_step_without_a_row_for_each_rank_is_skipped(count: int) -> None:
    learners = Learners()
    assert learn(learners, examples(count), config(), step=1, over=0.0) == {"skipped": 1.0}
    assert learners.steps == []


def test_one_step_takes_the_whole_batch_and_no_further_pass() -> None:
    learners, rows = Learners(), examples(5)
    numbers = learn(learners, rows, config(), step=2, over=0.0)
    assert learners.steps == [rows] and {row.sampled.old for row in rows if row.sampled} == {None}
    assert numbers == {"loss": 1.0, "tokens": 5.0, "optimiser_steps": 1.0, "learning_rate": 4.0, "skipped": 0.0}


@pytest.mark.parametrize(("mismatch", "old"), [("truncate", [0.0]), ("mask", [0.0]), ("ratio", None)])
def test_several_steps_keep_the_log_probs_of_before_the_first(mismatch: str, old: list[float] | None) -> None:
    learners, rows = Learners(), examples(6)
    settings = config(minibatches=3, epochs=2, objective={"mismatch": mismatch})
    numbers = learn(learners, rows, settings, step=9, over=0.75)
    assert [len(part) for part in learners.steps] == [2] * 6 and learners.rates == [4.0] * 6
    assert all(row.sampled and row.sampled.old == old for part in learners.steps for row in part)
    assert (numbers["tokens"], numbers["optimiser_steps"]) == (12.0, 6.0)
