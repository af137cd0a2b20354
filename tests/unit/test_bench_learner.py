"""The learner's measurement, on the toy shape in this process."""

from dataclasses import replace

import pytest

from bench.learner import LearnerWork, bench_learner

WORK = LearnerWork(frames=4, prompts=2, group=2, words=4, rounds=1)


@pytest.mark.parametrize("work", [WORK, replace(WORK, shared=False), replace(WORK, stage=1, latents=False)])
def test_steps_are_taken_on_new_clips_and_every_part_is_timed(work: LearnerWork) -> None:
    figures = bench_learner(work)
    assert figures["learner/clips_encoded"] == 2.0, "a clip of each prompt, once a step"
    parts = [figures[f"seconds/learn/{part}"] for part in ("encode", "forward", "backward", "optimise")]
    assert min(parts) > 0 and sum(parts) <= figures["step_s"]
