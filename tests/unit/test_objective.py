"""The policy objective of two replies, one of one token and one of three, worked out by hand."""

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from vsr1.rl.batch import BatchTotals
from vsr1.rl.objective import (
    TokenBatch,
    branch_objective,
    equal_gradients,
    latent_objective,
    merged,
    token_objective,
)
from vsr1.settings.training import LatentActionConfig, ObjectiveConfig

LIMIT = 10
TOTALS = BatchTotals(tokens=4, replies=2, refined=0, sampled_latents=2)
ln = math.log
# The learner's probabilities are 1, 4, 1/4 and 1 times the engine's; within the second reply, their mean is 1.
LEARNER, ENGINE, REFERENCE = [0.5, 0.4, 0.1, 0.2], [0.5, 0.1, 0.4, 0.2], [0.25, 0.4, 0.1, 0.2]
ADVANTAGES = [1.0, -2.0, -2.0, -2.0]
LOSSES = {
    ("clip", "truncate"): [-1.0, 2 * 2.0, 0.25 * 2.0, 2.0],
    ("clip", "mask"): [-1.0, 0.0, 0.0, 2.0],
    ("clip", "ratio"): [-1.0, 4 * 2.0, 0.8 * 2.0, 2.0],
    ("cispo", "truncate"): [-ln(0.5), 2 * 2 * ln(0.4), 0.25 * 2 * ln(0.1), 2 * ln(0.2)],
    ("cispo", "mask"): [-ln(0.5), 0.0, 0.0, 2 * ln(0.2)],
    ("cispo", "ratio"): [-ln(0.5), 1.28 * 2 * ln(0.4), 0.8 * 2 * ln(0.1), 2 * ln(0.2)],
    ("gspo", "truncate"): [-1.0, 2 * 2.0, 0.25 * 2.0, 2.0],
    ("gspo", "mask"): [-1.0, 0.0, 0.0, 2.0],
    ("gspo", "ratio"): [-1.0, 2.0, 2.0, 2.0],
}
WEIGHTS = {
    "token_mean": [1 / 4] * 4,
    "sequence_mean": [1 / 2, 1 / 6, 1 / 6, 1 / 6],
    "constant": [1 / 20] * 4,
}


def objective(**changed: Any) -> ObjectiveConfig:
    return ObjectiveConfig.model_validate(
        {"clip_low": 0.2, "clip_high": 0.28, "mismatch_low": 0.5, "mismatch_high": 2.0, "kl_weight": 0.5, **changed}
    )


def batch(first: int = 0, last: int = 2) -> TokenBatch:
    """Replies `first` to `last`."""
    at = slice((0, 1, 4)[first], (0, 1, 4)[last])
    logprobs, behaviour, reference = (torch.tensor(values[at]).log() for values in (LEARNER, ENGINE, REFERENCE))
    return TokenBatch(logprobs.requires_grad_(), behaviour, reference, torch.tensor(ADVANTAGES[at]), [1, 3][first:last])


def gradient(total: torch.Tensor, at: torch.Tensor) -> list[float]:
    return torch.autograd.grad(total, at)[0].tolist()


@pytest.mark.parametrize("normalise", WEIGHTS)
@pytest.mark.parametrize(("loss", "mismatch"), LOSSES)
def test_every_loss_and_normalisation(loss: str, mismatch: str, normalise: str) -> None:
    settings = objective(loss=loss, mismatch=mismatch, normalise=normalise)
    expected = sum(a * b for a, b in zip(LOSSES[loss, mismatch], WEIGHTS[normalise], strict=True))
    total, counted = token_objective(batch(), settings, TOTALS, LIMIT)
    assert float(total.detach()) == pytest.approx(expected)
    assert counted["policy_loss"] == pytest.approx(expected)


@pytest.mark.parametrize("kl", ["none", "k1", "k2", "k3"])
@pytest.mark.parametrize("normalise", WEIGHTS)
@pytest.mark.parametrize(("loss", "mismatch"), LOSSES)
def test_shares_of_micro_batches_add_up(loss: str, mismatch: str, normalise: str, kl: str) -> None:
    settings = objective(loss=loss, mismatch=mismatch, normalise=normalise, kl=kl)
    whole, counted = token_objective(batch(), settings, TOTALS, LIMIT)
    parts = [token_objective(batch(i, i + 1), settings, TOTALS, LIMIT) for i in range(2)]
    assert float(sum(total.detach() for total, _ in parts)) == pytest.approx(float(whole.detach()))
    for name, value in counted.items():
        merge = max if name.endswith("_max") else sum
        assert merge(part[name] for _, part in parts) == pytest.approx(value), name


def test_gradients_carry_the_weights() -> None:
    one = batch()
    total, _ = token_objective(one, objective(loss="clip", mismatch="truncate"), TOTALS, LIMIT)
    assert gradient(total, one.logprobs) == pytest.approx([-1 / 4, 2 * 2 / 4, 0.25 * 2 / 4, 2 / 4])
    total, _ = token_objective(one, objective(loss="clip", mismatch="ratio"), TOTALS, LIMIT)
    assert gradient(total, one.logprobs) == pytest.approx([-1 / 4, 4 * 2 / 4, 0.0, 2 / 4])  # the third is cut
    total, _ = token_objective(one, objective(loss="gspo", mismatch="mask"), TOTALS, LIMIT)
    assert gradient(total, one.logprobs) == pytest.approx([-1 / 4, 0.0, 0.0, 2 / 4])


@pytest.mark.parametrize(
    ("loss", "mismatch", "low", "high", "weighted"),
    [
        ("clip", "truncate", 0.0, 0.0, 0.25),
        ("clip", "mask", 0.0, 0.0, 0.5),
        ("clip", "ratio", 0.25, 0.0, None),  # of a negative advantage only the lower bound cuts
        ("cispo", "ratio", 0.25, 0.25, None),
        ("gspo", "ratio", 0.0, 0.0, None),
    ],
)
def test_what_is_logged(loss: str, mismatch: str, low: float, high: float, weighted: float | None) -> None:
    _, counted = token_objective(batch(), objective(loss=loss, mismatch=mismatch), TOTALS, LIMIT)
    assert (counted["clip_fraction/low"], counted["clip_fraction/high"]) == (low, high)
    assert counted.get("mismatch/weighted_fraction") == weighted
    assert counted["mismatch/mean"] == pytest.approx(2 * ln(4) / 4)
    assert counted["mismatch/gap_max"] == pytest.approx(ln(4))
    assert "kl" not in counted


@pytest.mark.parametrize("normalise", WEIGHTS)
@pytest.mark.parametrize(("kl", "value"), [("k1", ln(2)), ("k2", ln(2) ** 2 / 2), ("k3", 0.5 - 1 + ln(2))])
def test_the_kl_term_is_weighted_like_the_tokens(kl: str, value: float, normalise: str) -> None:
    """Learner and reference differ in the first token only, by a factor of 2."""
    without, _ = token_objective(batch(), objective(normalise=normalise), TOTALS, LIMIT)
    total, counted = token_objective(batch(), objective(normalise=normalise, kl=kl), TOTALS, LIMIT)
    assert float((total - without).detach()) == pytest.approx(0.5 * value * WEIGHTS[normalise][0], abs=1e-6)
    assert counted["kl"] == pytest.approx(value / 4, abs=1e-6)


SIGMA, NOISE = 0.5, [[[1.0, -2.0], [0.5, 3.0], [-1.0, 0.0]], [[0.25, 1.0], [-0.5, 2.0], [4.0, 1.0]]]
LATENT_ADVANTAGES = torch.tensor([1.5, -0.5])


def rolled() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents [2, 3, 2], the means that they were drawn from, and their noise."""
    noise = torch.tensor(NOISE)
    means = torch.arange(12.0).view(2, 3, 2)
    return means + SIGMA * noise, means.requires_grad_(), noise


def test_without_a_shift_latents_have_reinforces_loss_and_gradient() -> None:
    latents, means, noise = rolled()
    settings = LatentActionConfig(sigma=SIGMA, weight=2.0)
    total, counted = latent_objective(latents, means, noise, LATENT_ADVANTAGES, settings, TOTALS)
    assert float(total.detach()) == counted["latents/policy_loss"] == -2.0 * 0.5  # the mean advantage is 1/2
    assert (counted["latents/clip_fraction"], counted["latents/log_ratio_max"]) == (0.0, 0.0)
    found = torch.autograd.grad(total, means)[0]
    # weight 2, width 2, six latents
    expected = -2.0 * LATENT_ADVANTAGES[:, None, None] * noise / (SIGMA * 2) / 6
    torch.testing.assert_close(found, expected)


def test_shares_of_latents_add_up() -> None:
    latents, means, noise = rolled()
    settings = LatentActionConfig(sigma=SIGMA)
    parts = [
        latent_objective(latents[i], means[i], noise[i], LATENT_ADVANTAGES[i], settings, TOTALS)[0]
        for i in (slice(0, 1), slice(1, 2))
    ]
    assert [float(part.detach()) for part in parts] == [-1.5 / 2, 0.5 / 2]


def test_a_latent_that_has_come_far_is_clipped() -> None:
    """Means that have moved onto the latents: the log ratio is half the mean of noise squared, 1/2 where it is ±1.

    That is above the upper bound, which cuts where the advantage is positive.
    """
    noise = torch.tensor([[[1.0, -1.0]], [[-1.0, 1.0]]])
    means = torch.zeros(2, 1, 2, requires_grad=True)
    settings = LatentActionConfig(sigma=SIGMA, clip_low=0.05, clip_high=0.25)
    total, counted = latent_objective(means.detach(), means, noise, torch.tensor([1.0, -1.0]), settings, TOTALS)
    assert float(total.detach()) == pytest.approx((-1.25 + math.exp(0.5)) / 2)
    assert (counted["latents/clip_fraction"], counted["latents/log_ratio_max"]) == (0.5, 0.5)


def test_what_is_counted_adds_up_but_for_maxima_and_names_may_be_missing() -> None:
    ranks = [
        {"loss": 1.0, "gap_max": 3.0, "grad_norm": 2.0},
        {"loss": 0.5, "gap_max": 1.0, "grad_norm": 2.0, "kl": 4.0},
    ]
    assert merged(ranks) == {"gap_max": 3.0, "grad_norm": 2.0, "kl": 4.0, "loss": 1.5}
    assert list(merged(ranks)) == ["gap_max", "grad_norm", "kl", "loss"]
    assert merged([{"late_max": -2.0}, {}]) == {"late_max": -2.0}


ALGORITHMS = {  # the table of docs/training.md
    "GRPO": {"loss": "clip", "normalise": "sequence_mean", "clip_high": 0.2, "kl": "k3"},
    "Dr.GRPO": {"loss": "clip", "normalise": "constant", "clip_high": 0.2},
    "DAPO": {"loss": "clip", "normalise": "token_mean"},
    "GSPO": {"loss": "gspo", "normalise": "sequence_mean", "clip_low": 3e-4, "clip_high": 4e-4},
    "CISPO": {"loss": "cispo", "normalise": "token_mean", "clip_low": 1.0},
    "REINFORCE++": {"loss": "clip", "normalise": "token_mean", "clip_high": 0.2, "kl": "k2"},
}
OLD = [0.4, 0.3, 0.08, 0.2]  # the learner's probabilities before its first step on the batch


def later_step(**changed: Any) -> TokenBatch:
    """The second optimiser step on the two replies, at a policy that the first one has moved."""
    return replace(batch(), old=torch.tensor(OLD).log(), **changed)


@pytest.mark.parametrize("mismatch", ["truncate", "mask", "ratio"])
def test_each_algorithm_differs_from_the_others(mismatch: str) -> None:
    """With several steps a batch, or the engine in the ratio; advantages aside, which tell some of them apart too."""
    gradients = {}
    for name, settings in ALGORITHMS.items():
        at = later_step(advantages=torch.tensor([1.0, 0.5, -2.0, -0.5]))
        total, _ = token_objective(
            at, objective(**settings, mismatch=mismatch, mismatch_low=0.1, mismatch_high=4), TOTALS, LIMIT
        )
        gradients[name] = gradient(total, at.logprobs)
    for one, other in itertools.combinations(ALGORITHMS, 2):
        assert gradients[one] != pytest.approx(gradients[other], rel=1e-3), (one, other)


@pytest.mark.parametrize(("mismatch", "same"), [("truncate", True), ("mask", True), ("ratio", False)])
def test_in_the_first_step_the_losses_are_one_unless_the_ratio_holds_the_engine(mismatch: str, same: bool) -> None:
    gradients = []
    for loss, low, high in (("clip", 0.2, 0.28), ("gspo", 3e-4, 4e-4), ("cispo", 1.0, 0.28)):
        at = batch()
        settings = objective(loss=loss, clip_low=low, clip_high=high, mismatch=mismatch)
        gradients.append(gradient(token_objective(at, settings, TOTALS, LIMIT)[0], at.logprobs))
    assert all((one == pytest.approx(gradients[0])) == same for one in gradients[1:])


def test_a_later_step_takes_the_ratio_against_the_first_and_the_weights_of_the_first() -> None:
    """Ratios 1.25, 4/3, 1.25 and 1; weights for the engine 0.8, 3 (cut to 2), 0.2 and 1."""
    at = later_step()
    total, counted = token_objective(at, objective(mismatch="truncate"), TOTALS, LIMIT)
    losses = [-1.25 * 0.8, 2 * 4 / 3 * 2, 2 * 1.25 * 0.2, 2 * 1.0]
    assert float(total.detach()) == pytest.approx(sum(losses) / 4)
    assert counted["mismatch/weighted_fraction"] == 0.25
    assert counted["mismatch/gap_max"] == pytest.approx(ln(5))
    masked, _ = token_objective(later_step(), objective(mismatch="mask"), TOTALS, LIMIT)
    assert float(masked.detach()) == pytest.approx((losses[0] + losses[3]) / 4)


def test_a_loss_gets_the_gradient_of_another_at_a_tensor() -> None:
    at = torch.tensor([3.0, 4.0], requires_grad=True)
    small, large = 0.1 * at.sum(), at.square().sum()
    (other,) = torch.autograd.grad(large, at)
    scale = equal_gradients(small, other, at)
    (scale * small).backward()
    assert at.grad is not None and float(at.grad.norm()) == pytest.approx(10.0)
    assert equal_gradients(0 * at.sum(), other, at) == 0


def test_branches_have_the_gradient_of_the_smoothed_reward() -> None:
    slope = torch.tensor([[[1.0, -2.0, 0.5]]])
    means = torch.zeros(1, 1, 3, requires_grad=True)
    settings = LatentActionConfig(branches=20_000, branch_sigma=0.2, directions=0, weight=0.5)
    totals = BatchTotals(tokens=1, replies=2, refined=2, sampled_latents=0)
    total, _ = branch_objective(means, lambda moved: (moved * slope).sum((-1, -2)), settings, totals)
    total.backward()
    assert means.grad is not None
    torch.testing.assert_close(means.grad, -0.5 / 2 * slope, atol=0.02, rtol=0.05)
