"""The measurements of the loop, tiny, on real actors: what they time happens; plain vLLM gets the same requests."""

from __future__ import annotations

import pytest

from bench.rollout import LoopWork, bench_rollout
from bench.step import bench_step

WORK = LoopWork(prompts=2, group=2, words=16, at_once=4, rounds=1)


def test_rollouts_are_timed_in_the_loop_and_in_plain_vllm() -> None:
    figures = bench_rollout(WORK, plain=True)
    assert figures["turns"] == 2 * 2 * 2
    assert 2 <= figures["clips"] <= 2 * 2 * 2
    assert figures["of_plain"] == pytest.approx(figures["plain_s"] / figures["loop_s"])
    assert figures["tokens_per_s"] == pytest.approx(8 * (16 + 8) / figures["loop_s"])
    assert figures["plain_without_latents_s"] > 0


def test_a_step_is_timed_by_part() -> None:
    figures = bench_step(WORK, {"ranks": 1})
    assert figures["examples"] == 2 * 2 * 2
    assert min(figures[f"{part}_s"] for part in ("rollout", "learn", "push")) > 0
    assert figures["step_s"] == pytest.approx(figures["rollout_s"] + figures["learn_s"] + figures["push_s"], abs=0.05)
