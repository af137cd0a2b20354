"""Advantages with values worked out by hand."""

import math
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vsr1.rl.advantages import (
    batch_advantages,
    group_advantages,
    groups_with_variance,
    mean_rewards_to_go,
    overlong_penalty,
)

REWARDS = torch.tensor([1.0, 4.0, 2.0, 5.0, 3.0, 6.0])
GROUPS = torch.tensor([7, 2, 7, 9, 7, 2])  # 7: 1, 2, 3; 2: 4, 6; 9: 5 alone

SAMPLES = st.lists(st.tuples(st.floats(-10, 10, width=32), st.integers(0, 3)), min_size=1, max_size=20)


def tensors(samples: list[tuple[float, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    rewards, groups = zip(*samples, strict=True)
    return torch.tensor(rewards), torch.tensor(groups)


def test_dr_grpo_centres_each_group() -> None:
    result = group_advantages(REWARDS, GROUPS, divide_by_std=False, epsilon=0.5)
    assert result.tolist() == [-1.0, -1.0, 0.0, 0.0, 1.0, 1.0]


def test_grpo_divides_by_the_unbiased_deviation() -> None:
    result = group_advantages(REWARDS, GROUPS, divide_by_std=True, epsilon=0.5)
    three, two = 1 / (1 + 0.5), 1 / (math.sqrt(2) + 0.5)
    assert result.tolist() == pytest.approx([-three, -two, 0.0, 0.0, three, two])


def test_the_batch_is_normalised_after_its_groups_are_centred() -> None:
    # Centred: -2, 2, -2, 2, 0; the sum of squares 16 over 4 gives a deviation of 2.
    result = batch_advantages(torch.tensor([1.0, 5.0, 7.0, 11.0, 3.0]), torch.tensor([0, 0, 1, 1, 2]), 0.5)
    assert result.tolist() == pytest.approx([-0.8, 0.8, -0.8, 0.8, 0.0])


@pytest.mark.parametrize("epsilon", [0.0, 1e-8, 1.0])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_equal_rewards_give_exact_zeros(size: int, epsilon: float) -> None:
    rewards, groups = torch.full((size,), 0.1), torch.zeros(size, dtype=torch.long)
    assert not groups_with_variance(rewards, groups).any()
    for result in (
        group_advantages(rewards, groups, divide_by_std=True, epsilon=epsilon),
        group_advantages(rewards, groups, divide_by_std=False, epsilon=epsilon),
        batch_advantages(rewards, groups, epsilon),
    ):
        assert result.tolist() == [0.0] * size


def test_groups_with_variance() -> None:
    rewards = torch.tensor([1.0, 2.0, 1.0, 2.0, 5.0, 1.5])
    groups = torch.tensor([0, 1, 0, 1, 3, 1])
    assert groups_with_variance(rewards, groups).tolist() == [False, True, False, True, False, True]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_not_finite_is_an_error(bad: float) -> None:
    rewards, groups = torch.tensor([0.0, 1.0, bad, bad]), torch.tensor([0, 0, 1, 1])
    with pytest.raises(ValueError, match=f"sample 2 is {bad}"):
        group_advantages(rewards, groups, divide_by_std=True, epsilon=1e-4)
    with pytest.raises(ValueError, match=f"sample 2 is {bad}"):
        batch_advantages(rewards, groups, 1e-4)
    with pytest.raises(ValueError, match=f"sample 2 is {bad}"):
        groups_with_variance(rewards, groups)
    with pytest.raises(ValueError, match=f"turn 1 of sample 2 is {bad}"):
        mean_rewards_to_go([[0.0], [], [1.0, bad, 1.0]], 1.0)


@given(SAMPLES)
def test_advantages_of_a_group_add_up_to_zero(samples: list[tuple[float, int]]) -> None:
    rewards, groups = tensors(samples)
    plain = group_advantages(rewards, groups, divide_by_std=False, epsilon=1e-4)
    scaled = group_advantages(rewards, groups, divide_by_std=True, epsilon=1e-4)
    batch = batch_advantages(rewards, groups, 1e-4)
    for group in groups.unique():
        for result in (plain, scaled, batch):
            assert float(result[groups == group].sum()) == pytest.approx(0, abs=1e-3)
    # The largest of n values lies at most (n - 1) / sqrt(n) unbiased deviations from their mean.
    assert bool((scaled.abs() <= math.sqrt(len(samples))).all())
    assert bool((batch.abs() <= math.sqrt(len(samples))).all())


@given(SAMPLES, st.randoms(use_true_random=False))
def test_the_order_of_samples_makes_no_difference(samples: list[tuple[float, int]], random: Random) -> None:
    order = list(range(len(samples)))
    random.shuffle(order)
    rewards, groups = tensors(samples)
    straight = group_advantages(rewards, groups, divide_by_std=True, epsilon=1e-4)
    shuffled = group_advantages(rewards[order], groups[order], divide_by_std=True, epsilon=1e-4)
    assert shuffled.tolist() == pytest.approx(straight[order].tolist(), rel=1e-3, abs=1e-2)
    varied = groups_with_variance(rewards, groups)
    assert not straight[~varied].any()


def test_mean_rewards_to_go() -> None:
    assert mean_rewards_to_go([[1.0, 2.0, -3.0], [], [0.5]], 1.0) == [[0.0, -0.5, -3.0], [], [0.5]]
    assert mean_rewards_to_go([[1.0, 2.0, -3.0]], 0.5) == [[pytest.approx(1.25 / 1.75), pytest.approx(0.5 / 1.5), -3.0]]
    assert mean_rewards_to_go([[1.0, 2.0, -3.0]], 0.0) == [[1.0, 2.0, -3.0]]


@pytest.mark.parametrize(
    ("length", "value"), [(0, 0.0), (80, 0.0), (85, -0.25), (90, -0.5), (99, -0.95), (100, -1.0), (150, -1.0)]
)
def test_overlong_penalty(length: int, value: float) -> None:
    assert overlong_penalty(length, limit=100, buffer=20) == pytest.approx(value)


@pytest.mark.parametrize("buffer", [-1, 0, 101])
def test_an_overlong_buffer_must_fit_the_limit(buffer: int) -> None:
    with pytest.raises(ValueError, match="choose 1 to 100"):
        overlong_penalty(10, limit=100, buffer=buffer)


@given(st.integers(0, 300), st.integers(1, 200), st.data())
def test_the_overlong_penalty_only_falls(length: int, limit: int, data: st.DataObject) -> None:
    buffer = data.draw(st.integers(1, limit))
    assert -1 <= overlong_penalty(length + 1, limit, buffer) <= overlong_penalty(length, limit, buffer) <= 0
