"""Training examples of navigation: episodes with the engine's own tokens, or the words of records.

A record is one reply, or a whole episode whose replies are all learnt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from vsr1.episode.trajectory import Trajectory, Turn
from vsr1.formats.plain import encode_plain, plain
from vsr1.navigate.prompts import TURN_END
from vsr1.navigate.record import NavigateTurn
from vsr1.rl.batch import Example, Sampled
from vsr1.rl.credit import Credit
from vsr1.settings.training import GrpoConfig


def navigate_examples(
    trajectories: Sequence[Trajectory[Any, NavigateTurn]], credits: list[list[Credit]], stage: GrpoConfig
) -> list[Example]:
    """Return the examples of episodes: only the agent's own tokens are trained, never what it was shown.

    Turns that follow each other token for token are one example, whose history is computed once. A turn that shows a
    new clip or has another advantage begins another one, and so does each where the objective counts replies.

    Args:
        credits: of the turns of each trajectory.
    """
    objective = stage.objective
    counts_replies = objective.loss == "gspo" or objective.normalise == "sequence_mean"
    parts: list[list[tuple[Turn[NavigateTurn], Credit]]] = []
    for trajectory, turns in zip(trajectories, credits, strict=True):
        before: tuple[Turn[NavigateTurn], Credit] | None = None  # None: nothing that the next turn may join
        for turn, credit in zip(trajectory.turns, turns, strict=True):
            if turn.finish_reason == "length" and not objective.train_truncated:
                before = None
                continue
            if before and not counts_replies and before[1].tokens == credit.tokens and _follows(turn, before[0]):
                parts[-1].append((turn, credit))
            else:
                parts.append([(turn, credit)])
            before = turn, credit
    return [_example([turn for turn, _ in part], part[0][1]) for part in parts]


def _follows(turn: Turn[NavigateTurn], before: Turn[NavigateTurn]) -> bool:
    """Tell whether a prompt begins with another one and its reply, and shows no other clip."""
    ids = before.prompt_token_ids + before.response_token_ids
    return turn.clips == before.clips and turn.prompt_token_ids[: len(ids)] == ids


def _example(turns: Sequence[Turn[NavigateTurn]], credit: Credit) -> Example:
    """Return the example of turns of one episode, each of whose prompts holds those before it and their replies."""
    prompt = turns[0].prompt_token_ids
    response, logprobs, trained = list[int](), list[float](), list[bool]()
    for turn in turns:
        shown = turn.prompt_token_ids[len(prompt) + len(response) :]
        own = [True] * len(turn.response_token_ids) if turn.trained is None else turn.trained
        response += [*shown, *turn.response_token_ids]
        logprobs += [*[0.0] * len(shown), *turn.response_logprobs]
        trained += [*[False] * len(shown), *own]
    return Example(
        prompt_ids=prompt,
        response_ids=response,
        clips=tuple(turns[0].clips),
        sampled=Sampled(logprobs, credit.tokens, None if all(trained) else trained),
    )


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
