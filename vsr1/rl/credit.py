"""Which advantage each turn of each trajectory gets, for its tokens and for its latents."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from statistics import fmean

import torch

from vsr1.episode.trajectory import Trajectory
from vsr1.rl.advantages import batch_advantages, group_advantages, mean_rewards_to_go, overlong_penalty
from vsr1.settings.training import ObjectiveConfig


@dataclass(frozen=True)
class Credit:
    """Advantages of one turn: of the tokens of its reply, and of the latents that follow it."""

    tokens: float
    latents: float


def credits_of(trajectories: list[Trajectory], settings: ObjectiveConfig, limit: int) -> list[list[Credit]]:
    """Advantages of every turn, by trajectory.

    With credit by trajectory all turns share the advantage of the whole reward. With credit by turn, tokens answer for
    the mean reward of their turn and, discounted, of those after it, latents for the retrieval term of their turn and
    for the turns after it; they are compared with the same turn of the other samples.

    Args:
        trajectories: scored, of whole groups.
        limit: tokens that a reply may have at most, for the overlong penalty.

    Raises:
        ValueError: a reward that is not finite.
    """
    penalties = [_overlong(trajectory, settings, limit) for trajectory in trajectories]
    groups = {key: number for number, key in enumerate(dict.fromkeys(t.query_id for t in trajectories))}
    samples = [groups[trajectory.query_id] for trajectory in trajectories]
    if settings.credit == "trajectory":
        rewards = [
            trajectory.reward + fmean(penalty) for trajectory, penalty in zip(trajectories, penalties, strict=True)
        ]
        values = _advantages(rewards, samples, settings)
        return [[Credit(value, value)] * len(t.segments) for t, value in zip(trajectories, values, strict=True)]
    by_turn = [
        [reward + extra for reward, extra in zip(trajectory.turn_rewards, penalty, strict=True)]
        for trajectory, penalty in zip(trajectories, penalties, strict=True)
    ]
    returns = mean_rewards_to_go(by_turn, settings.discount)
    of_latents = [
        [
            own + settings.discount * after
            for own, after in zip(t.turn_retrieval_rewards, [*values[1:], 0.0], strict=True)
        ]
        for values, t in zip(returns, trajectories, strict=True)
    ]
    most = max(len(values) for values in returns)
    keys = [group * most + turn for group, values in zip(samples, returns, strict=True) for turn in range(len(values))]
    tokens = iter(_advantages(list(chain.from_iterable(returns)), keys, settings))
    latents = iter(_advantages(list(chain.from_iterable(of_latents)), keys, settings))
    return [[Credit(next(tokens), next(latents)) for _ in values] for values in returns]


def _advantages(rewards: list[float], groups: list[int], settings: ObjectiveConfig) -> list[float]:
    values, numbers = torch.tensor(rewards, dtype=torch.float64), torch.tensor(groups)
    if settings.advantage == "batch":
        return batch_advantages(values, numbers, settings.advantage_epsilon).tolist()
    divide = settings.advantage == "group"
    return group_advantages(values, numbers, divide_by_std=divide, epsilon=settings.advantage_epsilon).tolist()


def _overlong(trajectory: Trajectory, settings: ObjectiveConfig, limit: int) -> list[float]:
    """Penalty of each turn."""
    if not settings.overlong_buffer:
        return [0.0] * len(trajectory.segments)
    lengths = [len(segment.response_token_ids) for segment in trajectory.segments]
    return [overlong_penalty(length, limit, settings.overlong_buffer) for length in lengths]
