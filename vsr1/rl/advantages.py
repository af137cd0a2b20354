"""Advantages as pure functions of rewards; a reward that is not finite never becomes an advantage.

Rewards are float [n], one a sample, in any order; `groups` is int64 [n] and holds equal numbers for the samples of one
prompt. Groups may differ in size.
"""

from __future__ import annotations

import math

import torch


def group_advantages(
    rewards: torch.Tensor, groups: torch.Tensor, *, divide_by_std: bool, epsilon: float
) -> torch.Tensor:
    """Rewards centred on their group's mean, [n]; a group of one sample or without variance gets exact zeros.

    Source: with `divide_by_std` GRPO (by the group's unbiased standard deviation plus `epsilon`, as the reference
    does, method.md §4.3), without it Dr.GRPO.

    Raises:
        ValueError: a reward is not finite.
    """
    centred, group, sizes = _centred(rewards, groups)
    if not divide_by_std:
        return centred
    variance = torch.zeros_like(sizes).index_add(0, group, centred.square()) / (sizes - 1).clamp(min=1)
    scale = (variance.sqrt() + epsilon)[group]
    return torch.where(centred == 0, 0.0, centred / scale)


def batch_advantages(rewards: torch.Tensor, groups: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Rewards centred on their group's mean, then normalised over the whole batch, [n].

    Source: REINFORCE++ with group baseline, over samples. The batch's mean is zero once the groups are centred, so what
    is left to do is to divide by its unbiased standard deviation plus `epsilon`. No variance anywhere gives zeros.

    Raises:
        ValueError: a reward is not finite.
    """
    centred, _, _ = _centred(rewards, groups)
    return centred / (centred.std() + epsilon) if centred.any() else centred


def groups_with_variance(rewards: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Whether each sample's group holds rewards that differ, bool [n]; only those teach anything.

    Source: the filter of DAPO's dynamic sampling.

    Raises:
        ValueError: a reward is not finite.
    """
    _check(rewards)
    ids, group = groups.unique(return_inverse=True)
    empty = rewards.new_zeros(len(ids))
    highest = empty.scatter_reduce(0, group, rewards, "amax", include_self=False)
    lowest = empty.scatter_reduce(0, group, rewards, "amin", include_self=False)
    return (highest > lowest)[group]


def mean_rewards_to_go(turn_rewards: list[list[float]], discount: float) -> list[list[float]]:
    """Of each turn of each sample, the mean reward from there on, each later one weighing `discount` times as much.

    A mean, because a sum would pay for every further turn, whatever it does.

    Raises:
        ValueError: a reward is not finite.
    """
    returns = []
    for i, rewards in enumerate(turn_rewards):
        total, weight, backwards = 0.0, 0.0, []
        for turn in reversed(range(len(rewards))):
            if not math.isfinite(rewards[turn]):
                raise ValueError(f"the reward of turn {turn} of sample {i} is {rewards[turn]}; a reward must be finite")
            total, weight = rewards[turn] + discount * total, 1 + discount * weight
            backwards.append(total / weight)
        returns.append(backwards[::-1])
    return returns


def overlong_penalty(length: int, limit: int, buffer: int) -> float:
    """Reward in [-1, 0] of a reply's length in tokens: 0 up to `limit - buffer`, then linear to -1 at `limit`.

    Source: the soft overlong punishment of DAPO.

    Raises:
        ValueError: `buffer` is not in [1, limit].
    """
    if not 1 <= buffer <= limit:
        raise ValueError(f"an overlong buffer of {buffer} tokens does not fit a limit of {limit}; choose 1 to {limit}")
    return -min(max((length - (limit - buffer)) / buffer, 0.0), 1.0)


def _centred(rewards: torch.Tensor, groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rewards less their group's mean [n], each sample's group as an index into [g] groups, and their sizes [g].

    Rounding leaves a residue around the mean of equal rewards, which a small deviation would blow up: it is cleared.
    """
    varied = groups_with_variance(rewards, groups)
    ids, group = groups.unique(return_inverse=True)
    none = rewards.new_zeros(len(ids))
    sizes = none.index_add(0, group, torch.ones_like(rewards))
    means = none.index_add(0, group, rewards) / sizes
    return torch.where(varied, rewards - means[group], 0.0), group, sizes


def _check(rewards: torch.Tensor) -> None:
    bad = (~rewards.isfinite()).nonzero().flatten().tolist()
    if bad:
        i = bad[0]
        raise ValueError(f"the reward of sample {i} is {rewards[i].item()}; a reward must be finite")
