"""What every environment offers the policy, and the loop that plays one episode.

The environment knows videos and tools, the policy knows tokens; neither sees the other's inside. A second environment
(navigating inside one long video) fits the same three calls.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from vsr1.episode.trajectory import Trajectory
from vsr1.video.clips import Clip


@dataclass
class Observation:
    """What the policy is shown in one turn: a prompt with one placeholder, and the clip that goes there."""

    prompt: str
    clip: Clip


class PromptError(ValueError):
    """A prompt that the engine does not take, as it is too long; the message is the engine's."""


class PolicyReply(Protocol):
    """What a policy gives back; `vsr1.engine.engine.Reply` is one."""

    prompt_token_ids: list[int]
    token_ids: list[int]
    logprobs: list[float]
    text: str
    finish_reason: str
    latents: np.ndarray | None
    soft_tokens: np.ndarray | None
    noise: np.ndarray | None
    weight_version: int


class Environment(Protocol):
    async def reset(self) -> Observation | None:
        """The first observation, None when there is nothing to show."""

    async def step(self, reply: PolicyReply) -> Observation | None:
        """Take a reply; the next observation, None when the episode is over."""

    def trajectory(self) -> Trajectory:
        """Everything that happened so far."""


async def run_episode(
    environment: Environment, reply_to: Callable[[Observation, int], Awaitable[PolicyReply]]
) -> Trajectory:
    """Play one episode to its end.

    Args:
        environment: fresh, one an episode.
        reply_to: the policy: observation and turn number (from 1) to a reply.
    """
    observation = await environment.reset()
    turn = 1
    while observation is not None:
        observation = await environment.step(await reply_to(observation, turn))
        turn += 1
    return environment.trajectory()
