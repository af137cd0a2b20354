"""What every environment offers the policy, and the loop that plays one episode.

The environment knows videos and tools, the policy knows tokens; neither sees the other's inside.

A prompt is a list of parts: texts, clips, and token ids that were sampled before. It is either new in each turn (the
search environment) or grows: with `continues` an observation is appended to the last prompt and its reply, token for
token, so the engine's prefix cache and the log-probs of earlier replies stay valid.

    turn 1   observation [text, clip]          prompt [text, clip]
    turn 2   observation [text], continues     prompt [text, clip, ids of reply 1, text]
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np

from vsr1.episode.trajectory import FinishReason, RecordT, TaskT, Trajectory, Turn
from vsr1.video.clips import Clip, ClipReference

Part = str | Clip | list[int]  # token ids are used as they are


@dataclass
class Observation:
    """What the policy is shown in one turn."""

    parts: list[str | Clip]
    continues: bool = False


@dataclass
class Prompt:
    """What goes to the engine in one turn.

    `latents_unless` is a regular expression: a reply that it matches gets no latents, because the environment refines
    nothing after it.
    """

    parts: list[Part]
    latents_unless: str | None = None
    clips: list[Clip] = field(init=False)

    def __post_init__(self) -> None:
        self.clips = [part for part in self.parts if isinstance(part, Clip)]

    def token_ids(self, encode: Callable[[str], list[int]], placeholder: int) -> list[int]:
        """Return the ids of the whole prompt, with `placeholder` where each clip goes."""
        ids: list[int] = []
        for part in self.parts:
            match part:
                case str():
                    ids += encode(part)
                case Clip():
                    ids.append(placeholder)
                case _:
                    ids += part
        return ids


class PromptError(ValueError):
    """A prompt that the engine does not take, as it is too long; the message is the engine's."""


class PolicyReply(Protocol):
    """What a policy gives back; `vsr1.engine.engine.Reply` is one."""

    prompt_token_ids: list[int]
    token_ids: list[int]
    logprobs: list[float]
    text: str
    finish_reason: FinishReason
    latents: np.ndarray | None
    soft_tokens: np.ndarray | None
    seed: int
    weight_version: int


class Environment(Protocol[TaskT, RecordT]):
    @property
    def latents_unless(self) -> str | None:
        """See `Prompt`."""

    async def reset(self) -> Observation | None:
        """Return the first observation, None when there is nothing to show."""

    async def step(self, reply: PolicyReply) -> Observation | None:
        """Take a reply; return the next observation, None when the episode is over."""

    def trajectory(self) -> Trajectory[TaskT, RecordT]:
        """Return everything that happened so far."""


ReplyT = TypeVar("ReplyT", bound=PolicyReply)
ReplyTo = Callable[[Prompt, int], Awaitable[PolicyReply]]  # prompt and turn number (from 1)


async def run_episode(environment: Environment[TaskT, RecordT], reply_to: ReplyTo) -> Trajectory[TaskT, RecordT]:
    """Play one episode to its end and return what it left.

    Args:
        environment: fresh, one an episode.
        reply_to: the policy.
    """
    observation = await environment.reset()
    history: list[Part] = []
    turn = 1
    while observation is not None:
        parts = [*history, *observation.parts] if observation.continues else list[Part](observation.parts)
        reply = await reply_to(Prompt(parts, environment.latents_unless), turn)
        history = [*parts, reply.token_ids]
        observation = await environment.step(reply)
        turn += 1
    return environment.trajectory()


def turn_of(
    reply: PolicyReply, number: int, clips: list[Clip], record: RecordT, *, seconds: float, keep_latents: bool
) -> Turn[RecordT]:
    """Return the turn that a reply makes.

    Args:
        number: from 1.
        clips: that its prompt showed.
        keep_latents: whether the environment uses the reply's latents; else they are no action.
    """
    return Turn(
        number=number,
        clips=[ClipReference(clip.video_id, clip.content_hash) for clip in clips],
        prompt_token_ids=reply.prompt_token_ids,
        response_token_ids=reply.token_ids,
        response_logprobs=reply.logprobs,
        text=reply.text,
        finish_reason=reply.finish_reason,
        seed=reply.seed,
        weight_version=reply.weight_version,
        seconds=seconds,
        record=record,
        latents={"query": reply.latents} if keep_latents and reply.latents is not None else {},
    )
