"""Branches at the latents: many perturbations of one refinement, which embedder and search alone score.

A reply is decoded once; its latents are moved in a few directions, M times, and each branch is rewarded by where it
finds the right video. What comes out is the gradient of the smoothed reward, J(z) = E[r(z + sigma * c U)] over c ~ N(0,
I_k), by the score function, each branch against the mean of the others. With D directions in all, k of them explored,
the estimate's cosine with the true gradient is about sqrt(M / (M + k)) within the explored subspace.

Shapes: n refinements, N latents of R numbers, D = N * R, k directions, M branches.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

Rewards = Callable[[torch.Tensor], torch.Tensor]  # of branches [n, M, N, R]: [n, M]


def principal_directions(latents: torch.Tensor, count: int) -> torch.Tensor:
    """Return orthonormal directions in which latents [n, N, R] differ most, [k, N * R], k at most `count` and n - 1.

    With `count` 0, or fewer than two refinements, all directions are returned.
    """
    flat = latents.detach().flatten(1).float()
    if not count or len(flat) < 2:
        return torch.eye(flat.shape[1], device=flat.device)
    _, _, directions = torch.linalg.svd(flat - flat.mean(0), full_matrices=False)
    return directions[: min(count, len(flat) - 1)]


def gradient_directions(gradients: torch.Tensor, count: int) -> torch.Tensor:
    """Return orthonormal directions that hold most of gradients [n, N, R], of any length, [k, N * R], k at most n.

    Those of another loss than the reward's, as of an embedder that is known, can guide the search (Guided ES).
    """
    unit = torch.nn.functional.normalize(gradients.detach().flatten(1).float(), dim=1)
    return torch.linalg.svd(unit, full_matrices=False).Vh[: min(count or len(unit), len(unit))]


def leave_one_out(rewards: torch.Tensor) -> torch.Tensor:
    """Return rewards [n, M] less the mean of the other branches of the same refinement, [n, M]; M is at least 2."""
    branches = rewards.shape[1]
    return (rewards - rewards.mean(1, keepdim=True)) * branches / (branches - 1)


def score_gradient(draws: torch.Tensor, earned: torch.Tensor, sigma: float) -> torch.Tensor:
    """Return the score function's estimate of the gradient along each direction, [n, k].

    Args:
        draws: of branches along the directions, standard normal [n, M, k], M at least 2.
        earned: rewards [n, M].
        sigma: standard deviation of a branch along each direction.
    """
    return torch.einsum("nm,nmk->nk", leave_one_out(earned), draws) / (draws.shape[1] * sigma)


def branch_gradient(
    latents: torch.Tensor,
    directions: torch.Tensor,
    branches: int,
    sigma: float,
    rewards: Rewards,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return an estimate of the smoothed reward's gradient at latents [n, N, R], and the rewards [n, M] it is made of.

    Args:
        directions: orthonormal, [k, N * R].
        branches: M, at least 2.
        sigma: standard deviation along each direction, in the latents' unit.
        rewards: of branches.
        generator: of the draws, on the latents' device.
    """
    count, shape = len(latents), latents.shape[1:]
    draws = torch.randn(count, branches, len(directions), generator=generator, device=latents.device)
    moved = latents.detach()[:, None] + sigma * (draws @ directions).unflatten(-1, shape)
    earned = rewards(moved)
    return (score_gradient(draws, earned, sigma) @ directions).unflatten(-1, shape), earned


def log_ranks(scores: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return the reward of searches, minus the logarithm of the right video's rank: 0 where it is first.

    Args:
        scores: of every video that may be shown, [..., videos]; -inf of one that may not.
        right: row of the right video, int64, broadcast over the searches [...].
    """
    own = scores.gather(-1, right.expand(scores.shape[:-1])[..., None])
    return -((scores > own).sum(-1) + 1.0).log()
