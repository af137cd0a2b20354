"""The latent policy gradient learns a reward that has no gradient: a bandit whose arms are directions in latent space.

A linear policy maps a context to mean latents; the arm nearest to the sampled latents earns 1 if it is the context's.
"""

from collections.abc import Iterator

import pytest
import torch
from torch.nn import functional

from vsr1.rl.advantages import group_advantages
from vsr1.rl.losses import clipped_policy_loss, latent_logratio

ARMS, LATENTS, WIDTH, SAMPLES, SIGMA = 5, 2, 16, 8, 0.3


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small only wait for other threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pulled(latents: torch.Tensor, arms: torch.Tensor) -> torch.Tensor:
    """The arm [B] nearest to latents [B, N, R], whose directions are unit rows [ARMS, R]."""
    return (latents.mean(1) @ arms.T).argmax(-1)


def train(*, use_rewards: bool, steps: int = 200) -> tuple[float, float]:
    """Mean reward of sampled latents before and after, on the same noise."""
    generator = torch.Generator().manual_seed(5)
    arms = functional.normalize(torch.randn(ARMS, WIDTH, generator=generator), dim=-1)
    weights = (0.1 * torch.randn(ARMS, LATENTS, WIDTH, generator=generator)).requires_grad_()
    optimizer = torch.optim.Adam([weights], lr=0.01)
    held_out = SIGMA * torch.randn(400, ARMS, LATENTS, WIDTH, generator=generator)
    contexts = torch.arange(ARMS).repeat_interleave(SAMPLES)

    def mean_reward() -> float:
        latents = (weights.detach() + held_out).flatten(0, 1)
        return float((pulled(latents, arms) == torch.arange(ARMS).repeat(400)).float().mean())

    start = mean_reward()
    for _ in range(steps):
        noise = torch.randn(len(contexts), LATENTS, WIDTH, generator=generator)
        latents = weights.detach()[contexts] + SIGMA * noise
        rewards = (pulled(latents, arms) == contexts).float()
        advantages = group_advantages(rewards, contexts, divide_by_std=True, epsilon=1e-4)
        advantages = advantages[:, None].expand(-1, LATENTS) * use_rewards
        for _ in range(2):  # the second pass is off policy
            log_ratio = latent_logratio(latents, weights[contexts], noise, SIGMA)
            losses, _, _ = clipped_policy_loss(log_ratio, torch.zeros_like(log_ratio), advantages, 0.05, 0.05)
            optimizer.zero_grad()
            losses.mean().backward()
            optimizer.step()
    return start, mean_reward()


def test_the_advantages_teach_the_latents() -> None:
    start, end = train(use_rewards=True)
    assert start < 0.4
    assert end > 0.9


def test_without_advantages_nothing_moves() -> None:
    start, end = train(use_rewards=False)
    assert end == start
