"""The loop of an episode with an environment whose prompts grow, token for token, as well as one with fresh prompts."""

import asyncio
from dataclasses import dataclass

import numpy as np
import pytest

from vsr1.episode.environment import (
    Observation,
    PolicyReply,
    Prompt,
    ReplayError,
    finished_turn,
    replies_of,
    run_episode,
    turn_of,
)
from vsr1.episode.sample import SampleId
from vsr1.episode.trajectory import FinishReason, Trajectory
from vsr1.video.clips import Clip

PLACEHOLDER = 99


@dataclass
class Reply:
    token_ids: list[int]
    prompt_token_ids: list[int]
    text: str = "reply"
    finish_reason: FinishReason = "stop"
    latents: np.ndarray | None = None
    soft_tokens: np.ndarray | None = None
    seed: int = 5
    weight_version: int = 1

    @property
    def logprobs(self) -> list[float]:
        return [-0.5] * len(self.token_ids)


@dataclass
class Question:
    id: SampleId


def clip(name: str) -> Clip:
    return Clip.make(name, np.zeros((2, 4, 4, 3), np.uint8), np.arange(2.0))


class Browsing:
    """Shows a clip and a text, then two texts, then a text with two clips; `grows` keeps what was said before."""

    latents_unless = None

    def __init__(self, grows: bool) -> None:
        self._grows = grows
        self._shown: list[list[str | Clip]] = [["look", clip("a")], ["more", "words"], [clip("b"), "and", clip("c")]]
        self._trajectory: Trajectory[Question, str] = Trajectory(Question(SampleId("p")))

    async def reset(self) -> Observation | None:
        return Observation(self._shown[0])

    async def step(self, reply: PolicyReply) -> Observation | None:
        number = len(self._trajectory.turns) + 1
        shown = self._shown[:number] if self._grows else self._shown[number - 1 : number]
        clips = [part for parts in shown for part in parts if isinstance(part, Clip)]
        turn = turn_of(reply, number, clips, f"record {number}", seconds=0.1, keep_latents=False)
        self._trajectory.turns.append(turn)
        if number == len(self._shown):
            return None
        return Observation(self._shown[number], continues=self._grows)

    def trajectory(self) -> Trajectory[Question, str]:
        return self._trajectory


def encode(text: str) -> list[int]:
    return [len(text)]


def play(grows: bool) -> tuple[list[Prompt], Trajectory[Question, str]]:
    prompts = []

    async def reply_to(prompt: Prompt, turn: int) -> Reply:
        prompts.append(prompt)
        return Reply([100 + turn, 200 + turn], prompt.token_ids(encode, PLACEHOLDER))

    return prompts, asyncio.run(run_episode(Browsing(grows), reply_to))


def test_a_growing_history_keeps_the_sampled_tokens() -> None:
    prompts, trajectory = play(grows=True)
    first = [4, PLACEHOLDER]
    second = [*first, 101, 201, 4, 5]
    third = [*second, 102, 202, PLACEHOLDER, 3, PLACEHOLDER]
    assert [turn.prompt_token_ids for turn in trajectory.turns] == [first, second, third]
    assert [[clip.video_id for clip in prompt.clips] for prompt in prompts] == [["a"], ["a"], ["a", "b", "c"]]


def test_fresh_prompts_hold_their_own_turn_only() -> None:
    _, trajectory = play(grows=False)
    assert [turn.prompt_token_ids for turn in trajectory.turns] == [
        [4, PLACEHOLDER], [4, 5], [PLACEHOLDER, 3, PLACEHOLDER],
    ]  # fmt: skip


def test_a_turn_has_what_the_policy_gave_and_the_environment_said() -> None:
    _, trajectory = play(grows=False)
    turn = trajectory.turns[2]
    assert (turn.number, turn.record, turn.seed, turn.weight_version) == (3, "record 3", 5, 1)
    assert [(reference.video_id, len(reference.content_hash)) for reference in turn.clips] == [("b", 64), ("c", 64)]
    assert (turn.response_token_ids, turn.response_logprobs) == ([103, 203], [-0.5, -0.5])
    assert (turn.latents, turn.trained, trajectory.id) == ({}, None, SampleId("p"))


@pytest.mark.parametrize("grows", [True, False])
@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_an_episode_goes_on_from_its_finished_turns_as_if_nothing_had_happened(grows: bool, count: int) -> None:
    prompts, whole = play(grows)
    asked: list[int] = []

    async def reply_to(prompt: Prompt, turn: int) -> Reply:
        asked.append(turn)
        return Reply([100 + turn, 200 + turn], prompt.token_ids(encode, PLACEHOLDER))

    async def go_on() -> Trajectory[Question, str]:
        environment = Browsing(grows)
        finished = [finished_turn(turn, None) for turn in whole.turns[:count]]
        async for _ in replies_of(environment, reply_to, finished):
            pass
        return environment.trajectory()

    assert asyncio.run(go_on()) == whole
    assert asked == list(range(count + 1, len(prompts) + 1))


def test_a_turn_that_would_show_another_clip_is_not_played_again() -> None:
    _, whole = play(grows=False)
    turn = finished_turn(whole.turns[0], None)
    turn.clips = [clip("z").reference]

    async def go_on() -> None:
        async for _ in replies_of(Browsing(False), None, [turn]):
            pass

    with pytest.raises(ReplayError, match=r"turn 1 was shown .*'z'.* and would be shown .*'a'"):
        asyncio.run(go_on())
