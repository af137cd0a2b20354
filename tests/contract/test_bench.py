"""The measurements of the engine, on one small engine: what they time happens, and what they compare is right."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bench.engine import LatentWork, hugging_face_rounds, latent_figures, latent_rounds, push_rounds
from bench.lengths import EXACT_LENGTHS
from bench.measure import Rounds
from vsr1.engine.engine import PolicyEngine
from vsr1.model.checkpoint import load_policy
from vsr1.settings.parts import EngineConfig
from vsr1.video.clips import Clip

WORK = LatentWork(samples=4, group=2, words=4, rounds=2)


@pytest.fixture(scope="module")
def measured(policy_folder: Path, clips: list[Clip], tmp_path_factory: pytest.TempPathFactory):
    """Rounds of batches, rounds of pushes, and whether a tensor left out was named."""

    async def measure() -> tuple[Rounds, Rounds, bool]:
        engine = await PolicyEngine.start(policy_folder, EngineConfig(latent_slots=4, logits_processor=EXACT_LENGTHS))
        try:
            batches = await latent_rounds(engine, clips, WORK)
            file = tmp_path_factory.mktemp("push") / "pushed.part"
            return batches, *await push_rounds(engine, load_policy(policy_folder), "file", 1, file)
        finally:
            engine.shutdown()

    return asyncio.run(measure())


@pytest.mark.measured
def test_batches_with_and_without_latents_are_timed_in_turn(measured) -> None:
    batches, _, _ = measured
    assert {way: len(seconds) for way, seconds in batches.seconds.items()} == {"plain": 2, "refined": 2}
    assert min(map(min, batches.seconds.values())) > 0


@pytest.mark.measured
def test_every_push_is_timed_and_checked_and_a_tensor_left_out_is_named(measured) -> None:
    _, pushes, is_caught = measured
    assert {way: len(seconds) for way, seconds in pushes.seconds.items()} == {"push": 1, "check": 1}
    assert is_caught


def test_the_loops_of_hugging_face_run_on_a_clip(policy_folder: Path, clips: list[Clip]) -> None:
    taken = hugging_face_rounds(policy_folder, clips[0], WORK)
    assert {way: len(seconds) for way, seconds in taken.seconds.items()} == {"cached": 2, "full": 2}


def test_a_refinement_takes_what_latents_add_to_a_batch_over_its_samples() -> None:
    in_engine, one_by_one = Rounds(), Rounds()
    in_engine.seconds.update(plain=[1.0, 2.0, 1.0], refined=[1.4, 2.2, 1.4])
    one_by_one.seconds.update(cached=[1.0], full=[3.0])
    figures = latent_figures(in_engine, one_by_one, samples=4)
    assert figures == pytest.approx(
        {
            "batch_s": 1.0,
            "batch_with_latents_s": 1.4,
            "latents_add_percent": 40.0,
            "engine_ms": 100.0,
            "cached_hf_ms": 1000.0,
            "full_recompute_ms": 3000.0,
            "times_full_recompute": 30.0,
            "times_cached_hf": 10.0,
        }
    )
