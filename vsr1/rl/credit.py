"""Which advantage each turn of each trajectory gets, for its tokens and for its latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch

from vsr1.episode.trajectory import Trajectory
from vsr1.rl.advantages import batch_advantages, group_advantages, mean_rewards_to_go, overlong_penalty
from vsr1.settings.training import ObjectiveConfig


@dataclass(frozen=True)
class Credit:
    """Advantages of one turn: of the tokens of its reply, and of the latents that follow it."""

    tokens: float
    latents: float


def credits_of(
    trajectories: Sequence[Trajectory[Any, Any]], settings: ObjectiveConfig, limit: int
) -> list[list[Credit]]:
    """Return the advantages of every turn, by trajectory; a group is the samples of one prompt id.

    With credit by trajectory all turns share the advantage of the whole reward. With credit by turn, tokens answer for
    the mean reward of their turn and, discounted, of those after it, latents for their own reward and for the turns
    after them; they are compared with the same turn of the other samples.

    Args:
        trajectories: scored, of whole groups.
        limit: tokens that a reply may have at most, for the overlong penalty.

    Raises:
        ValueError: a reward that is not finite.
    """
    penalties = [_overlong(trajectory, settings, limit) for trajectory in trajectories]
    if settings.credit == "trajectory":
        rewards = [t.reward + fmean(penalty) for t, penalty in zip(trajectories, penalties, strict=True)]
        values = _advantages(rewards, [t.id.prompt for t in trajectories], settings)
        return [[Credit(value, value)] * len(t.turns) for t, value in zip(trajectories, values, strict=True)]
    returns = mean_rewards_to_go(
        [
            [reward + extra for reward, extra in zip(t.turn_rewards, penalty, strict=True)]
            for t, penalty in zip(trajectories, penalties, strict=True)
        ],
        settings.discount,
    )
    keys: list[tuple[str, int]] = []  # what each turn is compared with: the same turn of its group
    of_tokens: list[float] = []
    of_latents: list[float] = []
    for trajectory, values in zip(trajectories, returns, strict=True):
        for turn, value in enumerate(values):
            later = values[turn + 1] if turn + 1 < len(values) else 0.0
            keys.append((trajectory.id.prompt, turn))
            of_tokens.append(value)
            of_latents.append(trajectory.turn_latent_rewards[turn] + settings.discount * later)
    tokens, latents = _advantages(of_tokens, keys, settings), _advantages(of_latents, keys, settings)
    credits, start = [], 0
    for values in returns:
        end = start + len(values)
        credits.append([Credit(*pair) for pair in zip(tokens[start:end], latents[start:end], strict=True)])
        start = end
    return credits


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
