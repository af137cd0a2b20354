"""Losses with values worked out by hand, and their gradients against those of the objectives they stand for."""

import math
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vsr1.rl.losses import (
    cispo_loss,
    clipped_policy_loss,
    kl_estimate,
    latent_logratio,
    mismatch_weights,
    retrieval_loss,
    sequence_policy_loss,
    token_weights,
)

LOG2 = math.log(2)


def trained(*ratios: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Log probabilities with a gradient, and those they had before, all ratios to a half."""
    old = torch.full((len(ratios),), 0.5).log()
    return torch.tensor([0.5 * ratio for ratio in ratios]).log().requires_grad_(), old


def gradient(loss: torch.Tensor, at: torch.Tensor) -> list[float]:
    return torch.autograd.grad(loss, at)[0].tolist()


def test_the_clip_cuts_on_the_side_the_advantage_pushes_to() -> None:
    logprobs, old = trained(1.5, 1.5, 0.5, 0.5, 1.1, 0.9)
    advantages = torch.tensor([2.0, -2.0, 2.0, -2.0, 2.0, -2.0])
    losses, low, high = clipped_policy_loss(logprobs, old, advantages, 0.2, 0.28)
    assert losses.tolist() == pytest.approx([-2.56, 3.0, -1.0, 1.6, -2.2, 1.8])
    assert low.tolist() == [False, False, False, True, False, False]
    assert high.tolist() == [True, False, False, False, False, False]
    assert gradient(losses.sum(), logprobs) == pytest.approx([0.0, 3.0, -1.0, 0.0, -2.2, 1.8])


def test_a_higher_upper_bound_lets_more_through() -> None:
    logprobs, old = trained(1.25, 0.75)
    advantages = torch.tensor([1.0, -1.0])
    _, low, high = clipped_policy_loss(logprobs, old, advantages, 0.2, 0.2)
    assert (low.tolist(), high.tolist()) == ([False, True], [True, False])
    losses, low, high = clipped_policy_loss(logprobs, old, advantages, 0.2, 0.28)
    assert (low.tolist(), high.tolist()) == ([False, True], [False, False])
    assert losses.tolist() == pytest.approx([-1.25, 0.8])


def test_gspo_clips_the_geometric_mean_of_a_sequence() -> None:
    # Sequence 5 has ratios 2 and 1/2, mean 1; sequences 3 and 8 have 4 and 1, mean 2; sequence 4 has 1/4 and 1.
    sequences = torch.tensor([5, 3, 3, 5, 8, 8, 4, 4])
    logprobs, old = trained(2.0, 4.0, 1.0, 0.5, 4.0, 1.0, 0.25, 1.0)
    advantages = torch.tensor([3.0, 1.0, 1.0, 3.0, -1.0, -1.0, -1.0, -1.0])
    losses, low, high = sequence_policy_loss(logprobs, old, advantages, sequences, 0.25, 0.5)
    assert losses.tolist() == pytest.approx([-3.0, -1.5, -1.5, -3.0, 2.0, 2.0, 0.75, 0.75])
    assert low.tolist() == [False] * 6 + [True] * 2
    assert high.tolist() == [False, True, True, False, False, False, False, False]
    assert gradient((losses / 2).sum(), logprobs) == pytest.approx([-1.5, 0.0, 0.0, -1.5, 1.0, 1.0, 0.0, 0.0])


def test_gspo_has_the_gradient_of_the_sequence_objective() -> None:
    generator = torch.Generator().manual_seed(3)
    lengths, advantages = [1, 4, 7, 3], [1.3, -0.7, 0.4, -2.0]
    old = torch.randn(15, generator=generator) - 3
    logprobs = (old + 0.4 * torch.randn(15, generator=generator)).requires_grad_()
    objective = torch.zeros(())
    for new, before, advantage in zip(logprobs.split(lengths), old.split(lengths), advantages, strict=True):
        ratio = ((new - before).sum() / len(new)).exp()
        objective = objective - min(ratio * advantage, ratio.clamp(0.9, 1.1) * advantage)
    counts = torch.tensor(lengths)
    sequences = torch.arange(4).repeat_interleave(counts)
    spread = torch.tensor(advantages).repeat_interleave(counts)
    losses, low, high = sequence_policy_loss(logprobs, old, spread, sequences, 0.1, 0.1)
    total = (losses / counts.repeat_interleave(counts)).sum()
    assert (low | high).any() and not (low | high).all()
    assert float(total.detach()) == pytest.approx(float(objective.detach()))
    assert gradient(total, logprobs) == pytest.approx(gradient(objective, logprobs), abs=1e-6)


def test_gspo_of_a_masked_token_leaves_the_others_their_gradient() -> None:
    logprobs, old = trained(1.0, 1.0)
    losses, _, _ = sequence_policy_loss(logprobs, old, torch.ones(2), torch.zeros(2, dtype=torch.long), 0.1, 0.1)
    assert gradient((losses * torch.tensor([0.0, 1.0])).sum(), logprobs) == [0.0, -1.0]


def test_cispo_clips_the_weight_and_keeps_the_gradient() -> None:
    logprobs, old = trained(1.5, 1.5, 0.5, 0.5, 1.0)
    advantages = torch.tensor([2.0, -2.0, 2.0, -2.0, 3.0])
    losses, low, high = cispo_loss(logprobs, old, advantages, 0.2, 0.28)
    assert losses.tolist() == pytest.approx(
        [-2.56 * math.log(0.75), 2.56 * math.log(0.75), -1.6 * math.log(0.25), 1.6 * math.log(0.25), 3 * LOG2]
    )
    assert low.tolist() == [False, False, True, True, False]
    assert high.tolist() == [True, True, False, False, False]
    assert gradient(losses.sum(), logprobs) == pytest.approx([-2.56, 2.56, -1.6, 1.6, -3.0])


def gspo_sum(logprobs: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    """Every token its own sequence, so that a sum over sequences is one over tokens."""
    return sequence_policy_loss(logprobs, old, advantages, torch.arange(len(logprobs)), 3e-4, 4e-4)[0].sum()


@pytest.mark.parametrize(
    "loss",
    [
        lambda new, old, advantages: clipped_policy_loss(new, old, advantages, 0.2, 0.28)[0].sum(),
        lambda new, old, advantages: cispo_loss(new, old, advantages, 0.2, 0.28)[0].sum(),
        gspo_sum,
    ],
    ids=["clip", "cispo", "gspo"],
)
def test_on_policy_every_loss_has_reinforces_gradient(
    loss: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(12, 5, generator=generator, requires_grad=True)
    chosen = torch.randint(5, (12, 1), generator=generator)
    advantages = torch.randn(12, generator=generator)
    logprobs = logits.log_softmax(-1).gather(1, chosen)[:, 0]
    expected = torch.autograd.grad(-(advantages * logprobs).sum(), logits, retain_graph=True)[0]
    result = torch.autograd.grad(loss(logprobs, logprobs.detach(), advantages), logits)[0]
    torch.testing.assert_close(result, expected)


def test_on_policy_gspo_has_the_gradient_of_reinforce_over_token_means() -> None:
    logprobs, _ = trained(0.3, 0.7, 1.1)
    sequences, advantages = torch.tensor([0, 1, 1]), torch.tensor([2.0, -3.0, -3.0])
    losses, _, _ = sequence_policy_loss(logprobs, logprobs.detach(), advantages, sequences, 3e-4, 4e-4)
    assert gradient((losses / torch.tensor([1, 2, 2])).sum(), logprobs) == pytest.approx([-2.0, 1.5, 1.5])


POLICY, REFERENCE = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.25, 0.5])


@pytest.mark.parametrize(
    ("estimator", "values"),
    [
        ("k1", [LOG2, 0.0, -LOG2]),
        ("k2", [LOG2**2 / 2, 0.0, LOG2**2 / 2]),
        ("k3", [0.5 - 1 + LOG2, 0.0, 2 - 1 - LOG2]),
    ],
)
def test_kl_of_each_token(estimator: Literal["k1", "k2", "k3"], values: list[float]) -> None:
    assert kl_estimate(POLICY.log(), REFERENCE.log(), estimator).tolist() == pytest.approx(values, abs=1e-6)


def test_the_expectations_of_k1_and_k3_are_the_kl_and_that_of_k2_is_near() -> None:
    exact = 0.5 * LOG2 + 0.25 * 0 - 0.25 * LOG2
    expectation = {e: float((POLICY * kl_estimate(POLICY.log(), REFERENCE.log(), e)).sum()) for e in ("k1", "k2", "k3")}
    assert expectation["k1"] == pytest.approx(exact)
    assert expectation["k3"] == pytest.approx(exact)
    assert expectation["k2"] == pytest.approx(0.375 * LOG2**2)
    # The relative error of k2 goes to zero with the distance between the policies, and about as fast.
    base, direction = POLICY.double().log(), torch.tensor([1.0, -0.5, 0.3])
    errors = []
    for distance in (0.2, 0.1, 0.05):
        near = (base + distance * direction).log_softmax(-1)
        kl = float((near.exp() * (near - base)).sum())
        errors.append(abs(float((near.exp() * kl_estimate(near, base, "k2")).sum()) / kl - 1))
    assert errors[0] > 1.5 * errors[1] and errors[1] > 1.5 * errors[2]
    assert errors[2] < 0.05


def test_only_k2_has_the_gradient_of_the_kl() -> None:
    logits = torch.tensor([0.3, -0.2, 1.0, 0.1], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.1, 0.4, 0.2, 0.3], dtype=torch.float64)
    logprobs = logits.log_softmax(-1)
    sampled = logprobs.detach().exp()  # how often each token is drawn: the average over samples has no gradient
    reverse = torch.autograd.grad((logprobs.exp() * (logprobs - reference.log())).sum(), logits, retain_graph=True)[0]
    forward = torch.autograd.grad((reference * (reference.log() - logprobs)).sum(), logits, retain_graph=True)[0]
    result = {}
    for estimator in ("k1", "k2", "k3"):
        loss = (sampled * kl_estimate(logprobs, reference.log(), estimator)).sum()
        result[estimator] = torch.autograd.grad(loss, logits, retain_graph=True)[0]
    torch.testing.assert_close(result["k1"], torch.zeros_like(logits))
    torch.testing.assert_close(result["k2"], reverse)
    torch.testing.assert_close(result["k3"], forward)
    assert not torch.allclose(forward, reverse, atol=0.05)


@given(st.floats(-20, 0), st.floats(-20, 0))
def test_k2_and_k3_are_never_negative(logprob: float, reference: float) -> None:
    pair = torch.tensor([logprob]), torch.tensor([reference])
    assert kl_estimate(*pair, "k2").item() >= 0
    assert kl_estimate(*pair, "k3").item() >= 0


@pytest.mark.parametrize(
    ("how", "weights", "affected"),
    [
        ("truncate", [0.5, 1.0, 2.0, 2.0], [False, False, True, True]),
        ("mask", [0.0, 1.0, 0.0, 0.0], [True, False, True, True]),
    ],
)
def test_mismatch_weights(how: Literal["truncate", "mask"], weights: list[float], affected: list[bool]) -> None:
    learner = torch.tensor([0.1, 0.2, 0.5, 0.8]).log().requires_grad_()
    result, hit = mismatch_weights(learner, torch.full((4,), 0.2).log(), how, 0.75, 2.0)
    assert result.tolist() == pytest.approx(weights)
    assert hit.tolist() == affected
    assert not result.requires_grad


@given(st.lists(st.tuples(st.floats(-200, 0), st.floats(-200, 0)), min_size=1), st.sampled_from(["truncate", "mask"]))
def test_mismatch_weights_stay_in_their_bounds(
    pairs: list[tuple[float, float]], how: Literal["truncate", "mask"]
) -> None:
    learner, engine = torch.tensor(pairs).T
    weights, affected = mismatch_weights(learner, engine, how, 0.5, 2.0)
    assert bool(((weights >= 0) & (weights <= 2)).all())
    if how == "mask":
        assert bool(((weights == 0) == affected).all())
        assert bool((weights[~affected] >= 0.5).all())


@pytest.mark.parametrize(
    ("how", "weights"),
    [
        ("token_mean", [1 / 10] * 4),
        ("sequence_mean", [1 / 4, 1 / 12, 1 / 12, 1 / 12]),
        ("constant", [1 / 20] * 4),
    ],
)
def test_token_weights(how: Literal["token_mean", "sequence_mean", "constant"], weights: list[float]) -> None:
    assert token_weights([1, 3], how, tokens=10, sequences=4, limit=5).tolist() == pytest.approx(weights)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 5))
def test_token_weights_of_micro_batches_make_the_mean_of_the_batch(lengths: list[int], micro_batch: int) -> None:
    tokens, sequences = sum(lengths), len(lengths)
    losses = [[(7 * i + 3 * j) % 11 - 5.0 for j in range(length)] for i, length in enumerate(lengths)]
    expected = {
        "token_mean": sum(map(sum, losses)) / tokens,
        "sequence_mean": sum(sum(one) / len(one) for one in losses) / sequences,
        "constant": sum(map(sum, losses)) / (sequences * 9),
    }
    for how in ("token_mean", "sequence_mean", "constant"):
        total = 0.0
        for i in range(0, sequences, micro_batch):
            part = losses[i : i + micro_batch]
            weights = token_weights([len(one) for one in part], how, tokens=tokens, sequences=sequences, limit=9)
            total += float((weights * torch.tensor([value for one in part for value in one])).sum())
        assert total == pytest.approx(expected[how], abs=1e-5)


def test_the_latent_ratio_and_its_gradient() -> None:
    # Behaviour mean 0, sigma 1/2. First latent: distances 1/2 and -1 from the new mean against 1 and -2 from the old,
    # half the mean of 1 - 1/4 and 4 - 1. Second latent: means as they were.
    noise = torch.tensor([[[1.0, -2.0], [0.5, 3.0]]], requires_grad=True)
    latents = (0.5 * noise).detach().requires_grad_()
    means = torch.tensor([[[0.25, -0.5], [0.0, 0.0]]], requires_grad=True)
    result = latent_logratio(latents, means, noise, 0.5)
    assert result.tolist() == [[pytest.approx((0.75 + 3) / 4), 0.0]]
    result.sum().backward()
    assert means.grad is not None
    # (latent - mean) / sigma² / R
    assert means.grad.tolist() == [[pytest.approx([0.5, -1.0]), pytest.approx([0.5, 3.0])]]
    assert latents.grad is None and noise.grad is None


def test_the_latent_ratio_is_the_densities_geometric_mean() -> None:
    generator = torch.Generator().manual_seed(1)
    before, shift, noise = torch.randn(3, 2, 4, 6, generator=generator, dtype=torch.float64)
    latents, after = before + 0.3 * noise, before + 0.1 * shift
    density = torch.distributions.Normal
    expected = (density(after, 0.3).log_prob(latents) - density(before, 0.3).log_prob(latents)).mean(-1)
    torch.testing.assert_close(latent_logratio(latents, after, noise, 0.3), expected)


def test_rounding_hardly_moves_the_latent_ratio() -> None:
    generator = torch.Generator().manual_seed(2)
    means, noise = 10 * torch.randn(4, 8, 2048, generator=generator), torch.randn(4, 8, 2048, generator=generator)
    assert float(latent_logratio(means + 0.05 * noise, means, noise, 0.05).abs().max()) < 1e-5


def test_the_retrieval_loss() -> None:
    """Two queries, the second with one wrong video less: what fills its place does not count."""
    queries = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    videos = torch.tensor([[[0.6, 0.8], [0.6, -0.8], [0.6, 0.8]], [[1.0, 0.0], [0.6, 0.8], [1.0, 0.0]]])
    losses = retrieval_loss(queries, videos, torch.tensor([3, 2]), 0.4)
    assert losses.tolist() == pytest.approx([math.log(3), math.log(1 + math.exp(-1))])
