"""What training does differently for each environment: the records it takes, and what it follows.

The rest of an environment is its `EnvironmentSpec`; this part is of this floor, as its checks and scalars are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipelines.train.prompt_lengths import short_enough
from pipelines.train.record_checks import check_grpo_records, check_sft_records
from pipelines.train.records import record_rows, spoken_rows
from pipelines.train.step_metrics import (
    long_search_metrics,
    long_search_validation,
    navigate_metrics,
    navigate_validation,
    rollout_metrics,
    validation_metrics,
)
from vsr1.config import Config
from vsr1.environments.long_searches import LONG_SEARCHES
from vsr1.environments.navigation import NAVIGATION
from vsr1.environments.searches import SEARCHES
from vsr1.environments.spec import Rows
from vsr1.formats.dataset import DatasetFolder
from vsr1.navigate.examples import navigate_examples
from vsr1.rl.batch import Example
from vsr1.rl.credit import Credit
from vsr1.search.examples import trained_examples
from vsr1.search_then_navigate.examples import long_search_examples


@dataclass(frozen=True)
class Training:
    """One environment, as the stages of training see it."""

    sft_rows: Callable[[Config], Rows]  # of Stage 1, checked
    check: Callable[[Config], object]  # of the records of Stage 2; raises what is wrong with them
    examples: Callable[[Any, list[list[Credit]], Config], list[Example]]  # of trajectories and credits of their turns
    metrics: Callable[[Any, int], dict[str, float]]  # of trajectories, and the weights that the learner has
    validation: Callable[[Any, Any], dict[str, float]]  # of a summary and trajectories
    shown: dict[str, str]  # what a step shows besides its reward: scalars by label


def training_of(config: Config) -> Training:
    """Return what training does for the environment of a run."""
    return _TRAININGS[config.environment]


def _search_rows(config: Config) -> Rows:
    check_sft_records(config)
    rows = record_rows(DatasetFolder(config.data.root), with_rewrites=config.agent.refinement == "text")
    return short_enough(
        rows, config, config.sft.max_prompt_tokens, lambda row: [row["video_id"]], "sft.max_prompt_tokens"
    )


def _long_search_rows(config: Config) -> Rows:
    """Return records of whole episodes where the dataset has some, else those of the judgements of a search."""
    path = LONG_SEARCHES.sft_file(config)
    return _search_rows(config) if path == SEARCHES.sft_file(config) else spoken_rows(path)


_TRAININGS = {
    "search": Training(
        _search_rows,
        check_grpo_records,
        lambda episodes, credits, config: trained_examples(episodes, credits, config.grpo, config.agent),
        rollout_metrics,
        validation_metrics,
        {"R@1 after": "R@1_after"},
    ),
    "search_then_navigate": Training(
        _long_search_rows,
        check_grpo_records,
        lambda episodes, credits, config: long_search_examples(episodes, credits, config.grpo, config.agent),
        long_search_metrics,
        long_search_validation,
        {"R@1 after": "R@1_after", "spent": "spent"},
    ),
    "navigate": Training(
        lambda config: spoken_rows(NAVIGATION.sft_file(config)),
        NAVIGATION.training_rows,
        lambda episodes, credits, config: navigate_examples(episodes, credits, config.grpo),
        navigate_metrics,
        navigate_validation,
        {"accuracy": "accuracy", "spent": "spent"},
    ),
}
