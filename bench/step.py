"""A whole step of Stage 2 by part, on random weights: rollouts, learner, push, as the driver takes them one by one."""

from __future__ import annotations

from dataclasses import asdict
from statistics import median
from typing import Any

from bench.measure import Rounds
from bench.rollout import LoopWork, loop, play
from pipelines.stage.workers import Workers
from pipelines.train.grpo import learn
from vsr1.config import Config
from vsr1.formats.dataset import TRAIN
from vsr1.rl.credit import credits_of
from vsr1.search.examples import clips_of, trained_examples


def bench_step(work: LoopWork, learner: dict[str, Any]) -> dict[str, Any]:
    """Return medians over steps, after one that warms up.

    Args:
        learner: as `grpo.learner`.
    """
    with loop(work, learner) as (others, config):
        return step_figures(others, config, work) | {"learner": learner}


def step_figures(others: Workers, config: Config, work: LoopWork) -> dict[str, Any]:
    """Measure as `bench_step` on running workers, of a job that has a learner."""
    taken, numbers = Rounds(), []
    with others.learners(config, TRAIN) as learners:
        for step in range(work.rounds + 1):
            with taken.time("step"):
                with taken.time("rollout"):
                    trained = sorted(play(others, config, work, step * work.round_prompts), key=lambda one: one.id)
                    learners.prefetch(clip for one in trained for clip in clips_of(one))
                with taken.time("learn"):
                    credits = credits_of(trained, config.grpo.objective, config.agent.max_new_tokens)
                    examples = trained_examples(trained, credits, config.grpo, config.agent)
                    numbers.append(learn(learners, examples, config, step + 1, 0.0))
                with taken.time("push"):
                    others.push(learners, version=step + 1)
    names = sorted({name for one in numbers[1:] for name in one if name.startswith(("seconds/", "learner/", "mfu"))})
    return asdict(work) | {
        "first_step_s": taken.seconds["step"][0],
        **{f"{part}_s": median(seconds[1:]) for part, seconds in taken.seconds.items()},
        "examples": len(examples),
        **{name: median(one[name] for one in numbers[1:]) for name in names},
    }
