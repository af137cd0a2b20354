"""Which advantage each turn of each trajectory gets, for its tokens and for its latents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from statistics import fmean
from typing import Any

import torch

from vsr1.episode.trajectory import Trajectory
from vsr1.rl.advantages import batch_advantages, group_advantages, mean_rewards_to_go, overlong_penalty
from vsr1.settings.training import ObjectiveConfig

Trajectories = Sequence[Trajectory[Any, Any]]


@dataclass(frozen=True)
class Credit:
    """Advantages of one turn: of the tokens of its reply, and of the latents that follow it."""

    tokens: float
    latents: float


def credits_of(trajectories: Trajectories, settings: ObjectiveConfig, limit: int) -> list[list[Credit]]:
    """Return the advantages of every turn, by trajectory; a group is the samples of one prompt id.

    With credit by trajectory all turns share the advantage of the whole reward. With credit by turn, tokens answer for
    the mean reward of their turn and, discounted, of those after it, latents for their own reward and for the turns
    after them; they are compared with the same turn of the other samples. With terms apart, the tokens' advantage is
    the weighted sum of those of the terms (GDPO).

    Args:
        trajectories: scored, of whole groups.
        limit: tokens that a reply may have at most, for the overlong penalty.

    Raises:
        ValueError: a reward that is not finite.
    """
    penalties = [_overlong(trajectory, settings, limit) for trajectory in trajectories]
    sums = _Earned(
        [t.reward + fmean(penalty) for t, penalty in zip(trajectories, penalties, strict=True)],
        [
            [reward + extra for reward, extra in zip(t.turn_rewards, penalty, strict=True)]
            for t, penalty in zip(trajectories, penalties, strict=True)
        ],
    )
    if settings.terms == "apart":
        tokens = [0.0] * sum(len(t.turns) for t in trajectories)
        for weight, earned in _apart(trajectories, penalties):
            of_term = _of_tokens(trajectories, earned, settings)
            tokens = [total + weight * value for total, value in zip(tokens, of_term, strict=True)]
    else:
        tokens = _of_tokens(trajectories, sums, settings)
    latents = tokens if settings.credit == "trajectory" else _of_latents(trajectories, sums, settings)
    credits = map(Credit, tokens, latents)
    return [list(islice(credits, len(t.turns))) for t in trajectories]


@dataclass(frozen=True)
class _Earned:
    """What trajectories earned, of all terms or of one: as a whole, and by turn."""

    whole: list[float]
    turns: list[list[float]]


def _apart(trajectories: Trajectories, penalties: list[list[float]]) -> Iterator[tuple[float, _Earned]]:
    """Yield the weight of each term, and what it gave; the penalty of overlong replies is one of them."""
    yield 1.0, _Earned([fmean(penalty) for penalty in penalties], penalties)
    for name, weight in trajectories[0].weights.items() if trajectories else ():
        turns = [[turn.get(name, 0.0) for turn in t.turn_terms] for t in trajectories]
        yield weight, _Earned([t.terms[name] for t in trajectories], turns)


def _of_tokens(trajectories: Trajectories, earned: _Earned, settings: ObjectiveConfig) -> list[float]:
    """Return the advantage of the tokens of every turn, one trajectory after another."""
    if settings.credit == "turn":
        returns = mean_rewards_to_go(earned.turns, settings.discount)
        return _advantages(list(chain(*returns)), _same_turns(trajectories), settings)
    values = _advantages(earned.whole, [t.id.prompt for t in trajectories], settings)
    return [value for t, value in zip(trajectories, values, strict=True) for _ in t.turns]


def _of_latents(trajectories: Trajectories, earned: _Earned, settings: ObjectiveConfig) -> list[float]:
    """Return the advantage of the latents of every turn: of what they earned and of the turns after them."""
    rewards = []
    returns = mean_rewards_to_go(earned.turns, settings.discount)
    for trajectory, values in zip(trajectories, returns, strict=True):
        for own, later in zip(trajectory.turn_latent_rewards, [*values[1:], 0.0], strict=True):
            rewards.append(own + settings.discount * later)
    return _advantages(rewards, _same_turns(trajectories), settings)


def _same_turns(trajectories: Trajectories) -> list[tuple[str, int]]:
    """Return what each turn is compared with: the same turn of its group."""
    return [(t.id.prompt, turn) for t in trajectories for turn in range(len(t.turns))]


def _advantages(rewards: list[float], keys: Sequence[object], settings: ObjectiveConfig) -> list[float]:
    """Return the advantages of rewards among those of the same key."""
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    values, groups = torch.tensor(rewards, dtype=torch.float64), torch.tensor([numbers[key] for key in keys])
    if settings.advantage == "batch":
        return batch_advantages(values, groups, settings.advantage_epsilon).tolist()
    divide = settings.advantage == "group"
    return group_advantages(values, groups, divide_by_std=divide, epsilon=settings.advantage_epsilon).tolist()


def _overlong(trajectory: Trajectory[Any, Any], settings: ObjectiveConfig, limit: int) -> list[float]:
    """Return the penalty of each turn."""
    if not settings.overlong_buffer:
        return [0.0] * len(trajectory.turns)
    lengths = [len(turn.response_token_ids) for turn in trajectory.turns]
    return [overlong_penalty(length, limit, settings.overlong_buffer) for length in lengths]
