"""The measurements of the loop, tiny, on real actors: what they time happens; plain vLLM gets the same requests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench.rollout import LoopWork, loop, rollout_figures, scaling_figures
from bench.step import step_figures
from pipelines.stage.workers import Workers
from vsr1.config import Config

pytestmark = pytest.mark.measured
WORK = LoopWork(prompts=1, group=2, words=16, workers=2, at_once=4, rounds=1)
Running = tuple[Workers, Config]


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    """The workers of one job for both measurements."""
    with loop(WORK, {"ranks": 1}) as running:
        yield running


def test_rollouts_are_timed_in_the_loop_and_in_plain_vllm(running: Running) -> None:
    figures = rollout_figures(*running, WORK, plain=True)
    assert figures["turns"] == 2 * 2 * 2
    assert 2 <= figures["clips"] <= 2 * 2 * 2
    assert figures["of_plain"] == pytest.approx(figures["plain_s"] / figures["loop_s"])
    assert figures["tokens_per_s"] == pytest.approx(8 * (16 + 8) / figures["loop_s"])
    assert figures["plain_without_latents_s"] > 0


def test_a_step_is_timed_by_part(running: Running) -> None:
    figures = step_figures(*running, WORK)
    assert figures["examples"] == 2 * 2 * 2
    assert min(figures[f"{part}_s"] for part in ("rollout", "learn", "push")) > 0
    assert figures["step_s"] == pytest.approx(figures["rollout_s"] + figures["learn_s"] + figures["push_s"], abs=0.05)


def test_workers_are_measured_by_their_number(running: Running) -> None:
    figures = scaling_figures(*running, WORK)
    assert {count: one["turns"] for count, one in figures["by_workers"].items()} == {2: 2 * 2 * 2, 1: 2 * 2}
    rates = [figures["by_workers"][count]["tokens_per_s"] for count in (1, 2)]
    assert figures["added"] == {2: pytest.approx((rates[1] - rates[0]) / rates[0])}
    assert len(running[0].fleet.serving()) == 1
