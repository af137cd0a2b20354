"""Training examples of navigation: one a turn, with the engine's own tokens, or with the words of a record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from vsr1.episode.trajectory import Trajectory
from vsr1.formats.plain import encode_plain, plain
from vsr1.navigate.record import NavigateTurn
from vsr1.rl.batch import Example, Sampled
from vsr1.rl.credit import Credit
from vsr1.settings.training import GrpoConfig


def navigate_examples(
    trajectories: Sequence[Trajectory[Any, NavigateTurn]], credits: list[list[Credit]], stage: GrpoConfig
) -> list[Example]:
    """Return one example a turn: only the agent's own tokens are trained, what it was shown is in the prompt.

    Args:
        credits: of the turns of each trajectory.
    """
    return [
        Example(
            prompt_ids=turn.prompt_token_ids,
            response_ids=turn.response_token_ids,
            clips=tuple(turn.clips),
            sampled=Sampled(turn.response_logprobs, credit.tokens, turn.trained),
        )
        for trajectory, turns in zip(trajectories, credits, strict=True)
        for turn, credit in zip(trajectory.turns, turns, strict=True)
        if turn.finish_reason != "length" or stage.objective.train_truncated
    ]


def spoken_example(history: Sequence[str], reply: str, encode: Callable[[str], list[int]]) -> Example:
    """Return the example of a record; each text is encoded by itself, as the turns of an episode are.

    Args:
        history: what was shown and replied in turn, as `vsr1.navigate.files.Record` has it.
        encode: gives the ids of a text, without any that begin or end one.
    """
    prompt: list[int] = []
    for place, text in enumerate(history):
        prompt += encode_plain(encode, plain(text, is_reply=True) if place % 2 else text)
    return Example(prompt_ids=prompt, response_ids=encode_plain(encode, plain(reply, is_reply=True)))
