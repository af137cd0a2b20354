"""What Stage 2 does differently for each environment, once a step: the examples it trains on, and what it follows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.train.step_metrics import navigate_metrics, navigate_validation, rollout_metrics, validation_metrics
from vsr1.config import Config
from vsr1.episode.trajectory import Trajectory
from vsr1.navigate.examples import navigate_examples
from vsr1.rl.batch import Example
from vsr1.rl.credit import Credit
from vsr1.search.examples import trained_examples

Episodes = Sequence[Trajectory[Any, Any]]


@dataclass(frozen=True)
class Followed:
    """One environment, as the driver of Stage 2 sees it."""

    examples: Callable[[Any, list[list[Credit]], Config], list[Example]]
    metrics: Callable[[Any, int], dict[str, float]]  # of trajectories, and the weights that the learner has
    validation: Callable[[Any, Any], dict[str, float]]  # of a summary and trajectories
    shown: dict[str, str]  # what a step shows besides its reward: scalars by label


def followed(config: Config) -> Followed:
    """Return what Stage 2 does for the environment of a run."""
    if config.environment == "navigate":
        return Followed(
            lambda episodes, credits, config: navigate_examples(episodes, credits, config.grpo),
            navigate_metrics,
            navigate_validation,
            {"accuracy": "accuracy", "spent": "spent"},
        )
    return Followed(
        lambda episodes, credits, config: trained_examples(episodes, credits, config.grpo, config.agent),
        rollout_metrics,
        validation_metrics,
        {"R@1 after": "R@1_after"},
    )
