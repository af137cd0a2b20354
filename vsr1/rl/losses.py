"""Losses and advantages as pure functions of tensors."""

from __future__ import annotations

import torch
from torch.nn import functional


def group_advantages(rewards: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Advantages of one group of samples, [G]: centred on the group's mean, divided by its unbiased deviation.

    Source: GRPO as the reference trains it (method.md §4.3). A group without variance gets zeros.
    """
    return (rewards - rewards.mean()) / (rewards.std() + epsilon)


def clipped_policy_loss(
    logprobs: torch.Tensor, behaviour: torch.Tensor, advantages: torch.Tensor, clip_epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The clipped surrogate of each token, and whether the clip cut its gradient.

    Args:
        logprobs: under the policy being trained, [tokens].
        behaviour: under the policy that sampled, as the engine reported them, [tokens].
        advantages: of each token's trajectory, [tokens].
    """
    ratio = (logprobs - behaviour).exp()
    plain = ratio * advantages
    bounded = ratio.clamp(1 - clip_epsilon, 1 + clip_epsilon) * advantages
    return -torch.minimum(plain, bounded), bounded < plain


def retrieval_loss(
    query: torch.Tensor, positive: torch.Tensor, negatives: torch.Tensor, temperature: float
) -> torch.Tensor:
    """InfoNCE of one refined query against its right video (method.md §3.2); a scalar.

    Args:
        query: unit vector [E]. positive: unit vector [E]. negatives: unit vectors [n, E], n >= 1.
    """
    scores = torch.cat([positive[None], negatives]) @ query / temperature
    return functional.cross_entropy(scores[None], torch.zeros(1, dtype=torch.long, device=scores.device))
