"""What every environment offers the policy, and the loop that plays one episode.

The environment knows videos and tools, the policy knows tokens; neither sees the other's inside.

A prompt is a list of parts: texts, clips, and token ids that were sampled before. It is either new in each turn (the
search environment) or grows: with `continues` an observation is appended to the last prompt and its reply, token for
token, so the engine's prefix cache and the log-probs of earlier replies stay valid.

    turn 1   observation [text, clip]          prompt [text, clip]
    turn 2   observation [text], continues     prompt [text, clip, ids of reply 1, text]

An episode that was lost goes on from its last finished turn: its environment, a fresh one, is played again with the
replies that are there already, so that what it knows is as it was, and the policy is asked from the next turn on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

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


@dataclass
class FinishedTurn:
    """A reply, and what it depended on: enough to play its turn again without the policy."""

    prompt_token_ids: list[int]
    token_ids: list[int]
    logprobs: list[float]
    text: str
    finish_reason: FinishReason
    latents: np.ndarray | None  # None too where the environment did not use them
    soft_tokens: np.ndarray | None
    seed: int
    weight_version: int
    clips: list[ClipReference]  # that its prompt showed
    index_version: str = ""  # of the corpus that its episode searches, where it does


class ReplayError(RuntimeError):
    """A finished turn that cannot be played again: its prompt would show something else; the message names both."""


def finished_turn(turn: Turn[Any], soft_tokens: np.ndarray | None, index_version: str = "") -> FinishedTurn:
    """Return what is kept of a turn; `soft_tokens` are its reply's."""
    latents = turn.latents.get("query")
    return FinishedTurn(
        turn.prompt_token_ids,
        turn.response_token_ids,
        turn.response_logprobs,
        turn.text,
        turn.finish_reason,
        latents,
        None if latents is None else soft_tokens,
        turn.seed,
        turn.weight_version,
        turn.clips,
        index_version,
    )


async def replies_of(
    environment: Environment[TaskT, RecordT], reply_to: ReplyTo, finished: Sequence[FinishedTurn] = ()
) -> AsyncIterator[PolicyReply]:
    """Play one episode; yield each reply once the environment has taken it.

    Args:
        environment: fresh, one an episode.
        reply_to: the policy.
        finished: the first turns, which the policy is not asked for again.

    Raises:
        ReplayError: a finished turn saw other clips than its prompt shows now.
    """
    observation = await environment.reset()
    history: list[Part] = []
    turn = 1
    while observation is not None:
        parts = [*history, *observation.parts] if observation.continues else list[Part](observation.parts)
        prompt = Prompt(parts, environment.latents_unless)
        reply: PolicyReply
        if turn <= len(finished):
            reply = finished[turn - 1]
            shown = [clip.reference for clip in prompt.clips]
            if shown != finished[turn - 1].clips:
                raise ReplayError(f"turn {turn} was shown {finished[turn - 1].clips} and would be shown {shown} now")
        else:
            reply = await reply_to(prompt, turn)
        history = [*parts, reply.token_ids]
        observation = await environment.step(reply)
        yield reply
        turn += 1


async def run_episode(environment: Environment[TaskT, RecordT], reply_to: ReplyTo) -> Trajectory[TaskT, RecordT]:
    """Play one episode to its end and return what it left; see `replies_of`."""
    async for _ in replies_of(environment, reply_to):
        pass
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
