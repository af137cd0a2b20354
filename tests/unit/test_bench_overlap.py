"""What the bench of rollouts ahead of the learner makes of two logs."""

from pathlib import Path

import pytest

from bench.overlap import overlap
from vsr1.config import Config
from vsr1.runs.scalars import RunLog


def test_ratio_and_share_of_the_ideal_follow_from_the_logs(tmp_path: Path) -> None:
    """3 s of rollout and 2 s of learning, 5 s a step; ahead of the learner 4 s: 1.25 of at most 1.667."""
    for bound, seconds in ((0, 5.0), (1, 4.0)):
        run = tmp_path / f"staleness-{bound}"
        (run / "checkpoints" / "grpo").mkdir(parents=True)
        now = iter([step * seconds for step in range(1, 9)])
        with RunLog(run, clock=lambda now=now: next(now)) as log:
            for step in range(1, 9):
                values = {"reward/total": 1.0, "seconds/rollout": 3.0, "seconds/learn": 2.0, "staleness": float(bound)}
                log.log("grpo", step, values)
    config = Config.model_validate(
        {"run_dir": tmp_path, "grpo": {"steps": 8, "prompts_per_step": 5, "group_size": 2, "learner": {"ranks": 1}}}
    )
    figures = overlap(config, 2)
    assert figures["staleness_0"]["samples_per_second"] == pytest.approx(2.0)
    assert figures["staleness_1"]["samples_per_second"] == pytest.approx(2.5)
    assert (figures["ratio"], figures["ideal"], figures["share_of_ideal"]) == (1.25, 1.667, 0.75)
