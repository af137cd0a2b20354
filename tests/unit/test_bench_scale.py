"""The cost model gives what was measured, and the simulation loses no sample whatever dies."""

import pytest

from bench.cost import Costs
from bench.scale import ScaleWork, bench_scale

SMALL = ScaleWork(gpus=20, engines=8, ranks=8, videos=1_000_000, prompts=16, at_once=16, steps=3)


def test_costs_are_those_of_docs_performance() -> None:
    costs = Costs()
    assert costs.learn_s(4, 8, 1, 1) == pytest.approx(0.51, rel=0.02)
    assert costs.learn_s(16, 8, 1, 1) == pytest.approx(1.88, rel=0.05)
    assert costs.play_s(256) * 64 / 96 == pytest.approx(1.76, rel=0.01)
    assert costs.search_cores(341, 100_000) == pytest.approx(2)


def test_every_sample_is_trained_once() -> None:
    figures = bench_scale(SMALL)
    assert figures["samples"] == {"trained": 3 * 16 * 8} and figures["open_samples"] == 0
    assert 0 < figures["learner_share"] <= 1 and figures["step_s"] > Costs().learn_s(16, 8, 1, 8)


def test_deaths_and_preemptions_lose_nothing() -> None:
    work = ScaleWork(**{**SMALL.__dict__, "deaths": 60.0, "preemptions": 60.0, "prompts": 32, "steps": 4})
    figures = bench_scale(work)
    assert figures["lost_and_played_again"]["deaths"] + figures["lost_and_played_again"]["preemptions"] > 0
    assert figures["lost_and_played_again"]["samples"] > 0
    assert figures["samples"] == {"trained": 4 * 32 * 8} and figures["open_samples"] == 0


def test_the_same_seed_gives_the_same_seconds() -> None:
    first, second = bench_scale(SMALL), bench_scale(SMALL)
    assert first["step_s"] == second["step_s"] and first["samples"] == second["samples"]
