"""Branches at the latents: an unbiased gradient in few directions, a baseline of the others, ranks as rewards."""

import math

import pytest
import torch

from vsr1.rl.branches import (
    branch_gradient,
    gradient_directions,
    leave_one_out,
    log_ranks,
    principal_directions,
)


def test_each_branch_is_compared_with_the_mean_of_the_others() -> None:
    rewards = torch.tensor([[1.0, 2.0, 6.0]])
    assert leave_one_out(rewards).tolist() == [[1.0 - 4.0, 2.0 - 3.5, 6.0 - 1.5]]


def test_the_reward_is_the_logarithm_of_the_rank_among_the_videos_that_may_be_shown() -> None:
    scores = torch.tensor([[0.9, 0.5, 0.7], [0.1, 0.5, 0.7], [-math.inf, 0.5, 0.7]])
    found = log_ranks(scores, torch.tensor(1))
    assert found.tolist() == pytest.approx([-math.log(3), -math.log(2), -math.log(2)])


def test_directions_are_orthonormal_and_those_in_which_the_latents_differ_most() -> None:
    generator = torch.Generator().manual_seed(0)
    spread = torch.zeros(2, 3)
    spread[0, 1], spread[1, 2] = 5.0, 3.0
    latents = 7.0 + torch.randn(50, 2, 3, generator=generator) * (spread + 0.01)
    directions = principal_directions(latents, 2)
    torch.testing.assert_close(directions @ directions.T, torch.eye(2))
    assert [int(direction.abs().argmax()) for direction in directions] == [1, 5]
    assert principal_directions(latents, 0).shape == (6, 6)
    assert len(principal_directions(latents[:3], 32)) == 2


@pytest.mark.parametrize("count", [0, 3])
def test_the_estimate_is_the_gradient_of_a_linear_reward_in_the_directions_that_are_explored(count: int) -> None:
    generator = torch.Generator().manual_seed(1)
    latents, slope = torch.randn(6, 2, 4, generator=generator), torch.randn(6, 2, 4, generator=generator)

    def rewards(branches: torch.Tensor) -> torch.Tensor:
        return torch.einsum("nmij,nij->nm", branches, slope)

    directions = principal_directions(latents, count)
    gradient, earned = branch_gradient(latents, directions, 4000, 0.3, rewards, generator)
    wanted = (slope.flatten(1) @ directions.T @ directions).unflatten(-1, (2, 4))
    cosine = torch.nn.functional.cosine_similarity(gradient.flatten(1), wanted.flatten(1))
    assert cosine.min() > 0.99
    assert earned.shape == (6, 4000)
    assert float(gradient.norm() / wanted.norm()) == pytest.approx(1.0, abs=0.05)


def test_the_cosine_follows_from_the_number_of_branches_and_of_directions() -> None:
    generator = torch.Generator().manual_seed(2)
    slope = torch.randn(400, 1, 32, generator=generator)
    latents = torch.zeros_like(slope)
    gradient, _ = branch_gradient(
        latents, torch.eye(32), 16, 1.0, lambda moved: torch.einsum("nmij,nij->nm", moved, slope), generator
    )
    cosine = torch.nn.functional.cosine_similarity(gradient.flatten(1), slope.flatten(1)).mean()
    assert float(cosine) == pytest.approx(math.sqrt(16 / (16 + 32)), abs=0.03)


def test_directions_of_gradients_hold_them_however_long_each_is() -> None:
    gradients = torch.tensor([[[100.0, 0.0, 0.0]], [[0.0, 0.01, 0.0]]])
    directions = gradient_directions(gradients, 5)
    assert directions.shape == (2, 3)
    torch.testing.assert_close(gradients[:, 0] @ directions.T @ directions, gradients[:, 0])
