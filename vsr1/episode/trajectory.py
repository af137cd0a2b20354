"""What one episode leaves: its turns, as they went through the engine, and what its environment says of each.

Token ids and log-probs are the engine's own; nothing is tokenised again. What only one environment knows is in the
`record` of a turn and in the `task`, which are that environment's own types.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, Literal, Protocol, TypeVar

import numpy as np

from vsr1.episode.sample import SampleId
from vsr1.video.clips import ClipReference

FinishReason = Literal["refined", "stop", "length"]  # by the refine token with latents, the end token, the limit


class Task(Protocol):
    """What an episode is about; each environment has its own type."""

    @property
    def id(self) -> SampleId: ...


TaskT = TypeVar("TaskT", bound=Task)
RecordT = TypeVar("RecordT")


@dataclass
class Turn(Generic[RecordT]):
    """One reply to one prompt.

    `response_token_ids` holds the sampled tokens only, up to and including the refine token where one was sampled.
    `latents` are by name, each [N, R] as sampled: their means plus sigma times the noise that follows from `seed`.
    """

    number: int  # from 1
    clips: list[ClipReference]  # in the order of their placeholders in the prompt
    prompt_token_ids: list[int]
    response_token_ids: list[int]
    response_logprobs: list[float]
    text: str
    finish_reason: FinishReason
    seed: int  # of the request
    weight_version: int
    seconds: float
    record: RecordT
    latents: dict[str, np.ndarray] = field(default_factory=dict)
    trained: list[bool] | None = None  # which response tokens are the agent's own; None: all
    continues: bool = False  # the prompt begins with the prompt and the reply of the turn before


@dataclass
class Trajectory(Generic[TaskT, RecordT]):
    """All turns of one sample, its reward terms and why it ended."""

    task: TaskT
    turns: list[Turn[RecordT]] = field(default_factory=list)
    end_reason: str = ""  # in the environment's words
    terms: dict[str, float] = field(default_factory=dict)  # unweighted, by name
    turn_rewards: list[float] = field(default_factory=list)  # weighted, of each turn; what judges the end with the last
    turn_latent_rewards: list[float] = field(default_factory=list)  # what of each is for the latents
    turn_terms: list[dict[str, float]] = field(default_factory=list)  # unweighted; what judges the end with the last
    weights: dict[str, float] = field(default_factory=dict)  # of the terms
    reward: float = 0.0

    @property
    def id(self) -> SampleId:
        return self.task.id

    @property
    def last(self) -> Turn[RecordT]:
        return self.turns[-1]
