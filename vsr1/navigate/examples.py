"""Training examples of navigation: one a turn, with the engine's own tokens, or with the words of a record.

A record is one reply, or a whole episode whose replies are all learnt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from vsr1.episode.trajectory import Trajectory
from vsr1.formats.plain import encode_plain, plain
from vsr1.navigate.prompts import TURN_END
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


def spoken_example(
    history: Sequence[str], reply: str, encode: Callable[[str], list[int]], *, whole: bool = False
) -> Example:
    """Return the example of a record; each text is encoded by itself, as the turns of an episode are.

        shown  reply  <end> shown  reply      the prompt is the first text, of the rest `-` is learnt where it is whole
               -----  -----        -----

    Args:
        history: what was shown and replied in turn, as `vsr1.navigate.files.Record` has it.
        encode: gives the ids of a text, without any that begin or end one.
        whole: the replies of the history are learnt too, each with the token that ends it, in one pass over all.
    """
    texts = [
        encode_plain(encode, plain(text, is_reply=True) if place % 2 else text)
        for place, text in enumerate([*history, reply])
    ]
    if not whole:
        return Example(prompt_ids=list(chain(*texts[:-1])), response_ids=texts[-1])
    learnt = list[bool]()
    for place, (text, ids) in enumerate(zip([*history[1:], reply], texts[1:], strict=True)):
        ends = place % 2 and text.startswith(TURN_END)
        learnt += [True] * len(ids) if not place % 2 else [bool(ends)] + [False] * (len(ids) - 1)
    return Example(prompt_ids=texts[0], response_ids=list(chain(*texts[1:])), learnt=learnt)
