"""Who a sample is, and that no two requests share a seed."""

import numpy as np
import torch

from vsr1.engine.latent_table import MAX_DEPTH, latent_noise
from vsr1.episode.sample import SEED_BITS, SampleId, hashed_seed


def test_no_seed_repeats_within_a_run_or_between_runs() -> None:
    """Three runs of 20 steps, 32 prompts, 8 samples, 3 turns: when seeds were counted, 63 % of them repeated."""
    seeds = [
        SampleId(f"0/{prompt}/q{prompt}", sample).seed(run, turn)
        for run in range(3)
        for prompt in range(20 * 32)
        for sample in range(8)
        for turn in range(1, 4)
    ]
    assert len(set(seeds)) == len(seeds) == 46_080
    assert all(0 <= seed < 2**SEED_BITS for seed in seeds)


def test_a_seed_follows_from_every_part_but_the_attempt() -> None:
    base = (7, "0/3/q", 1, 0, 2)
    others = [(8, *base[1:]), (7, "1/3/q", 1, 0, 2), (7, "0/3/q", 2, 0, 2), (7, "0/3/q", 1, 1, 2), (*base[:4], 3)]
    assert SampleId("0/3/q", 1).seed(7, 2) == hashed_seed(*base)
    assert len({hashed_seed(*parts) for parts in [base, *others]}) == 6
    assert hashed_seed("1", 2) != hashed_seed(1, "2") != hashed_seed("12")


def test_an_attempt_is_played_with_the_seeds_of_the_first() -> None:
    first, again = SampleId("p", 2), SampleId("p", 2, attempt=1)
    assert first != again and first < again
    assert first.seed(0, 1) == again.seed(0, 1)


def test_a_seed_is_fit_for_every_generator() -> None:
    largest = 2**SEED_BITS - 1
    torch.Generator().manual_seed(largest * MAX_DEPTH + MAX_DEPTH - 1)
    np.random.default_rng(largest)
    assert latent_noise(largest, MAX_DEPTH - 1, 4).shape == (4,)


def test_seeds_are_the_same_on_every_machine() -> None:
    assert hashed_seed(0, "0/0/1_fig", 0, 0, 1) == 57658392012538288
