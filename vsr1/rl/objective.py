"""The policy objective of a micro-batch: from log-probs and advantages to one number and what to log about it.

Everything is a share of the whole batch, so that micro-batches and ranks add up (`merged`). Which settings make which
published algorithm is in docs/training.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vsr1.model.upload import upload
from vsr1.rl.batch import BatchTotals
from vsr1.rl.branches import Rewards, branch_gradient, gradient_directions, principal_directions
from vsr1.rl.losses import (
    PolicyLoss,
    cispo_loss,
    clipped_policy_loss,
    kl_estimate,
    latent_logratio,
    mismatch_weights,
    sequence_policy_loss,
    token_weights,
)
from vsr1.settings.training import LatentActionConfig, ObjectiveConfig

Values = dict[str, torch.Tensor]  # each one number, where it was computed
Counted = dict[str, float]


def fetched(parts: list[Values]) -> list[Counted]:
    """Return what passes have counted as plain numbers; one wait for the device, whatever their number is."""
    values = [value.detach().float() for part in parts for value in part.values()]
    numbers = iter(torch.stack(values).tolist() if values else [])
    return [{name: next(numbers) for name in part} for part in parts]


def merged(parts: list[Counted]) -> Counted:
    """Return what micro-batches or ranks have counted, together and sorted; a name may be missing in some of them.

    Values are summed; names that end in `_max` take the largest, and so does the gradient norm, which is that of the
    whole batch already.
    """
    values: dict[str, list[float]] = {}
    for part in parts:
        for name, value in part.items():
            values.setdefault(name, []).append(value)
    return {
        name: max(values[name]) if name.endswith("_max") or name == "grad_norm" else sum(values[name])
        for name in sorted(values)
    }


@dataclass(frozen=True)
class TokenBatch:
    """The replies of one micro-batch, one after the other; all float32 [tokens]."""

    logprobs: torch.Tensor  # under the policy being trained, with gradient
    behaviour: torch.Tensor  # as the engine reported them
    reference: torch.Tensor | None  # under the policy that the stage started from
    advantages: torch.Tensor
    lengths: list[int]  # tokens of each reply
    old: torch.Tensor | None = None  # under the learner before its first step on this batch; None: this is the first


def token_objective(
    batch: TokenBatch, settings: ObjectiveConfig, totals: BatchTotals, limit: int
) -> tuple[torch.Tensor, Values]:
    """Return the share of the policy loss, its KL term included.

    The ratio is taken against the learner's own policy as it was before its first step on the batch, so in that step it
    is one. How far the engine was from that policy is a matter of weights, unless `mismatch` takes it into the ratio.

    Args:
        limit: tokens that a reply may have at most.
    """
    logprobs, behaviour = batch.logprobs, batch.behaviour
    weights = token_weights(
        batch.lengths, settings.normalise, tokens=totals.tokens, sequences=totals.replies, limit=limit
    )
    weights = upload(weights, logprobs.device, logprobs.dtype)
    old = logprobs.detach() if batch.old is None else batch.old
    losses, cut_low, cut_high = _policy_loss(batch, behaviour if settings.mismatch == "ratio" else old, settings)
    counted: Values = {}
    if settings.mismatch != "ratio":
        corrections, affected = mismatch_weights(
            old, behaviour, settings.mismatch, settings.mismatch_low, settings.mismatch_high
        )
        losses = losses * corrections
        counted["mismatch/weighted_fraction"] = affected.sum() / totals.tokens
    total = (losses * weights).sum()
    gap = (old - behaviour).abs()
    counted |= {
        "policy_loss": total.detach(),
        "clip_fraction/low": cut_low.sum() / totals.tokens,
        "clip_fraction/high": cut_high.sum() / totals.tokens,
        "mismatch/mean": gap.sum() / totals.tokens,
        "mismatch/gap_max": gap.max(),
    }
    if batch.reference is not None and settings.kl != "none":
        kl = kl_estimate(logprobs, batch.reference, settings.kl)
        counted["kl"] = kl.detach().sum() / totals.tokens
        total = total + settings.kl_weight * (kl * weights).sum()
    return total, counted


def latent_objective(
    latents: torch.Tensor,
    means: torch.Tensor,
    noise: torch.Tensor,
    advantages: torch.Tensor,
    settings: LatentActionConfig,
    totals: BatchTotals,
) -> tuple[torch.Tensor, Values]:
    """Return the share of the policy loss of sampled latents, weighted; each latent is an action of its reply.

    Args:
        latents: as sampled, [B, N, R].
        means: of the policy being trained at those latents, with gradient, [B, N, R].
        noise: standard normal, latents = behaviour's means + sigma * noise, [B, N, R].
        advantages: of the replies, [B].
    """
    ratio = latent_logratio(latents, means, noise, settings.sigma)
    losses, cut_low, cut_high = clipped_policy_loss(
        ratio, torch.zeros_like(ratio), advantages[:, None].expand_as(ratio), settings.clip_low, settings.clip_high
    )
    actions = totals.sampled_latents * ratio.shape[1]
    total = settings.weight * losses.sum() / actions
    return total, {
        "latents/policy_loss": total.detach(),
        "latents/clip_fraction": (cut_low | cut_high).sum() / actions,
        "latents/log_ratio_max": ratio.detach().abs().max(),
    }


def branch_objective(
    means: torch.Tensor,
    rewards: Rewards,
    settings: LatentActionConfig,
    totals: BatchTotals,
    guide: torch.Tensor | None = None,
) -> tuple[torch.Tensor, Values]:
    """Return the share of the policy loss of branches from the latents of refinements, weighted.

    Its gradient at the means is `branch_gradient`'s, a mean over all refinements of the batch.

    Args:
        means: of the policy being trained, with gradient, [n, N, R].
        rewards: of branches of these refinements.
        guide: gradients of another loss at the latents, in whose directions branches differ; None: in the latents' own.
    """
    if guide is None:
        directions = principal_directions(means, settings.directions)
    else:
        directions = gradient_directions(guide, settings.directions)
    gradient, earned = branch_gradient(means, directions, settings.branches, settings.branch_sigma, rewards)
    total = -settings.weight * (gradient * means).sum() / totals.refined
    spread = earned.std(1).sum()
    return total, {
        "latents/branch_reward": earned.mean(1).sum() / totals.refined,
        "latents/branch_spread": spread / totals.refined,
    }


def equal_gradients(loss: torch.Tensor, other: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Return what to multiply a loss with so that its gradient at a tensor is as long as another one; 0 where it is 0.

    The graph stays for the backward pass to come.
    """
    own = torch.autograd.grad(loss, at, retain_graph=True)[0].norm()
    return torch.where(own > 0, other.norm() / own.clamp(min=1e-20), 0.0)


def _policy_loss(batch: TokenBatch, old: torch.Tensor, settings: ObjectiveConfig) -> PolicyLoss:
    low, high = settings.clip_low, settings.clip_high
    match settings.loss:
        case "clip":
            return clipped_policy_loss(batch.logprobs, old, batch.advantages, low, high)
        case "cispo":
            return cispo_loss(batch.logprobs, old, batch.advantages, low, high)
        case "gspo":
            sequences = upload(torch.repeat_interleave(torch.tensor(batch.lengths)), batch.logprobs.device)
            return sequence_policy_loss(batch.logprobs, old, batch.advantages, sequences, low, high)
