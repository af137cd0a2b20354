"""What has to be known of an environment beside its episodes; `registry.environment_of` gives the one of a run.

The stages ask it instead of the environment's name, so another environment is another `EnvironmentSpec`, and no `if`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from vsr1.config import Config
from vsr1.episode.rewards import Rewards
from vsr1.episode.sample import FailedSample
from vsr1.episode.trajectory import Trajectory
from vsr1.formats.dataset import TRAIN, DatasetFolder
from vsr1.formats.digest import value_sha256
from vsr1.settings.parts import AgentConfig

if TYPE_CHECKING:
    from vsr1.rl.refined import VideoVectors

Rows = list[dict[str, Any]]
Outcomes = Mapping[str, Trajectory[Any, Any] | FailedSample]  # by prompt id
HELPED = ":helped"  # ends the query id of a prompt whose right video is shown first because it hardly ever succeeds


def fingerprint_of(settings: Mapping[str, Any]) -> str:
    """Return what tells evaluations of other settings apart."""
    return value_sha256(settings)[:16]


@dataclass(frozen=True)
class EvaluationQuery:
    """One annotation of a split; with a `skipped` reason it cannot be played, and counts as a failure."""

    index: int  # in the annotation file, from 0
    task: Any
    skipped: str = ""  # under the reference's names (data-eval.md §4.3)
    message: str = ""


@dataclass(frozen=True)
class Evaluated:
    """What was evaluated, and what became of it."""

    queries: list[EvaluationQuery]
    outcomes: Outcomes
    split: str
    agent: AgentConfig
    fingerprint: str


@dataclass(frozen=True)
class EnvironmentSpec:
    """One environment.

    Attributes:
        summary: type of what an evaluation comes to; it has `failed` and `to_json`.
        sft_file, training_file: what Stage 1 and Stage 2 train on.
        is_built: whether `data.root` holds what the toy world has to make.
        training_rows: the records of Stage 2; raises FileNotFoundError without them, ValueError if none can be used.
        training_task: the task of a record; its prompt id is the text and its query id, and where the flag is set its
            right video is shown first, if the environment shows one.
        evaluation_queries: what is played of a split for its first `eval.limit` annotations, in order; raises
            FileNotFoundError if the split is not built, ValueError if its annotations are faulty.
        rewards: the terms of the reward, with the weights of the settings.
        succeeded: whether a trajectory ended as it should, with the right video or answer.
        scored: the rows of an evaluation in the order of the queries, and their summary.
        figures: what the display shows of a summary, by name.
        exports: JSON values that an evaluation writes besides its rows, by the ending of the file.
        settings: of this environment alone that decide what a training step (True) or an evaluation (False) does.
        has_corpus: a retrieval service searches the clips of a split, which `vsr1 data build` makes.
        has_films: tools look into long films.
    """

    summary: type[BaseModel]
    sft_file: Callable[[Config], Path]
    training_file: Callable[[Config], Path]
    is_built: Callable[[Config], bool]
    training_rows: Callable[[Config], Rows]
    training_task: Callable[[dict[str, Any], Config, str, bool], Any]
    evaluation_queries: Callable[[Config, str], list[EvaluationQuery]]
    rewards: Callable[[Config], Rewards[Any, Any]]
    succeeded: Callable[[Any], bool]
    scored: Callable[[Config, Evaluated], tuple[list[Any], Any]]
    figures: Callable[[Any], dict[str, float]]
    exports: Callable[[list[Any]], dict[str, Any]] = field(default=lambda rows: {})
    settings: Callable[[Config, bool], dict[str, Any]] = field(default=lambda config, is_training: {})
    has_corpus: bool = False
    has_films: bool = False

    def vectors(self, config: Config) -> VideoVectors:
        """Return the corpus vectors of the training split, which refined queries are compared with; else none."""
        import torch  # slow to import, as what needs it

        from vsr1.rl.refined import VideoVectors, load_vectors

        if not self.has_corpus:
            return VideoVectors(torch.zeros(0, 1), {})
        return load_vectors(DatasetFolder(config.data.root), TRAIN)
