"""Losses as pure functions of tensors: one value a token, weighted and summed by the caller.

Policy losses take log probabilities of the same sampled tokens, float32 [tokens], all sequences one after the other:
`logprobs` under the policy being trained, `old` under the policy that the ratio is taken against, `advantages` of each
token. Gradients flow through `logprobs` only. `clip_low` and `clip_high` bound the ratio to
[1 - clip_low, 1 + clip_high]. They return the losses [tokens] and, as two bool [tokens], where the lower and where the
upper bound took effect.
"""

from __future__ import annotations

from typing import Literal

import torch

PolicyLoss = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def clipped_policy_loss(
    logprobs: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, clip_low: float, clip_high: float
) -> PolicyLoss:
    """Return the clipped surrogate of each token, and which bound cut its gradient (arguments: see the module).

    The lower bound cuts where the advantage is negative, the upper one where it is positive. Any shape will do.
    Source: PPO; bounds that differ are DAPO's clip-higher.
    """
    ratio = (logprobs - old).exp()
    bounded = ratio.clamp(1 - clip_low, 1 + clip_high)
    loss = -torch.minimum(ratio * advantages, bounded * advantages)
    return loss, (ratio < bounded) & (advantages < 0), (ratio > bounded) & (advantages > 0)


def sequence_policy_loss(
    logprobs: torch.Tensor,
    old: torch.Tensor,
    advantages: torch.Tensor,
    sequences: torch.Tensor,
    clip_low: float,
    clip_high: float,
) -> PolicyLoss:
    """Return the same as `clipped_policy_loss`, with the geometric mean over a sequence's tokens as its ratio.

    A token's loss has the value of its sequence's, and the gradient of its own log probability only. Their mean over
    the sequence is the sequence's clipped loss with its gradient, and a token that is weighted down (see
    `mismatch_weights`) takes only its own share along. Advantages may differ within a sequence.
    Source: GSPO, in its form by token. Its bounds are orders of magnitude narrower than PPO's.

    Args:
        sequences: the same number for all tokens of a sequence, int64 [tokens]; no sequence may be split over calls.
    """
    ids, sequence = sequences.unique(return_inverse=True)
    none = logprobs.new_zeros(len(ids))
    lengths = none.index_add(0, sequence, torch.ones_like(logprobs))
    means = none.index_add(0, sequence, (logprobs - old).detach()) / lengths
    log_ratio = means[sequence] + (logprobs - logprobs.detach())
    return clipped_policy_loss(log_ratio, torch.zeros_like(log_ratio), advantages, clip_low, clip_high)


def cispo_loss(
    logprobs: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, clip_low: float, clip_high: float
) -> PolicyLoss:
    """Return REINFORCE with a clipped importance weight that has no gradient, and which bound the weight met.

    No token loses its gradient here: a bound that took effect changed its size.
    Source: CISPO. A `clip_low` of 1 leaves the weight without a lower bound.
    """
    ratio = (logprobs - old).detach().exp()
    weight = ratio.clamp(1 - clip_low, 1 + clip_high)
    return -weight * advantages * logprobs, ratio < weight, ratio > weight


def kl_estimate(logprobs: torch.Tensor, reference: torch.Tensor, estimator: Literal["k1", "k2", "k3"]) -> torch.Tensor:
    """Estimate of KL(policy || reference) at each token that the policy sampled, [tokens].

    With r = reference / policy: k1 = -log r, k2 = (log r)² / 2, k3 = r - 1 - log r. In expectation k1 and k3 are the
    KL; k2 is biased, by little while the policies are close. As a loss, differentiated at the sampled tokens, only k2
    has the gradient of this KL: k1's is zero in expectation, and k3's is that of KL(reference || policy), which agrees
    to first order in the distance.
    Source: Schulman's estimators; the reference uses k3 (method.md §4.3).

    Args:
        logprobs: under the policy being trained, the one that sampled, [tokens]. reference: [tokens].
    """
    log_ratio = reference - logprobs
    match estimator:
        case "k1":
            return -log_ratio
        case "k2":
            return log_ratio.square() / 2
        case "k3":
            return log_ratio.expm1() - log_ratio


def mismatch_weights(
    learner: torch.Tensor, engine: torch.Tensor, how: Literal["truncate", "mask"], low: float, high: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return importance weights for tokens whose engine computes other log probabilities than the learner.

    `truncate` bounds the weight from above only (truncated importance sampling; `low` is not used); `mask` drops a
    token whose weight lies outside [low, high] (the masked form, as in IcePop). No gradient flows.

    Args:
        learner: log probabilities at the engine's weights, as the learner computes them, [tokens].
        engine: of the same tokens as the engine reported them, [tokens].

    Returns:
        weights [tokens], and as bool [tokens] which of them were bounded or dropped.
    """
    ratio = (learner - engine).detach().exp()
    match how:
        case "truncate":
            return ratio.clamp(max=high), ratio > high
        case "mask":
            outside = (ratio < low) | (ratio > high)
            return ratio.masked_fill(outside, 0.0), outside


def token_weights(
    lengths: list[int],
    how: Literal["token_mean", "sequence_mean", "constant"],
    *,
    tokens: int,
    sequences: int,
    limit: int,
) -> torch.Tensor:
    """Return the weight of each token of a micro-batch, float32 [sum(lengths)]; they add up over batches and ranks.

    The sum of weight times loss over the whole batch is, with `token_mean`, the mean over its tokens (DAPO); with
    `sequence_mean`, the mean over sequences of their token means (GRPO as published); with `constant`, the sum over
    tokens by a constant that does not depend on their lengths (Dr.GRPO).

    Args:
        lengths: tokens of each sequence of the micro-batch.
        tokens, sequences: of the whole batch, over all micro-batches and ranks.
        limit: tokens that a sequence may have at most.
    """
    counts = torch.tensor(lengths, dtype=torch.long)
    match how:
        case "token_mean":
            weights = torch.full(counts.shape, 1 / tokens)
        case "sequence_mean":
            weights = 1 / (sequences * counts)
        case "constant":
            weights = torch.full(counts.shape, 1 / (sequences * limit))
    return weights.repeat_interleave(counts)


def latent_logratio(latents: torch.Tensor, means: torch.Tensor, noise: torch.Tensor, sigma: float) -> torch.Tensor:
    """Return the log density ratio of sampled latents, present policy to behaviour policy, a dimension, [B, N].

    The latents were drawn as behaviour_mean + sigma * noise, and both policies are N(mean, sigma² I). The ratio is
    averaged over the R dimensions, a geometric mean as GSPO takes it over tokens: means that differ by a tenth of sigma
    through rounding alone would, summed over R = 2048, make a ratio of exp(-10). Two things follow: gradients are R
    times smaller than those of the joint density, and a clip needs narrow bounds, as in GSPO. The value is at most the
    mean of noise² / 2, so its exponential does not overflow.

    Args:
        latents: as sampled, float32 [B, N, R]; a half-precision copy no longer fits its noise.
        means: under the policy being trained, [B, N, R]; the only argument with a gradient.
        noise: standard normal, [B, N, R].
        sigma: standard deviation of a dimension, in the latents' unit.
    """
    distance = (latents.detach() - means) / sigma
    noise = noise.detach()
    # The difference of squares as a product: the squares themselves are large and nearly equal.
    return ((noise - distance) * (noise + distance)).mean(-1) / 2


def retrieval_loss(
    queries: torch.Tensor, videos: torch.Tensor, counts: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Return the InfoNCE of refined queries, each against its right video (method.md §3.2), [n].

    Args:
        queries: unit vectors [n, E].
        videos: unit vectors [n, m, E], of each query the right one and then the wrong ones.
        counts: how many videos of each query count, int64 [n]; at least 2.
    """
    scores = torch.einsum("nme,ne->nm", videos, queries) / temperature
    beyond = torch.arange(videos.shape[1], device=scores.device) >= counts[:, None]
    return -scores.masked_fill(beyond, -torch.inf).log_softmax(-1)[:, 0]
