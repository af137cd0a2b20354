"""What the bench of rollouts ahead of the learner makes of two logs."""

from pathlib import Path

import pytest

from bench.overlap import overlap
from vsr1.config import Config
from vsr1.runs.scalars import RunLog


def test_ratio_and_share_of_the_ideal_follow_from_the_logs(tmp_path: Path) -> None:
    """3 s of rollout and 2 s of learning, 5 s a step; ahead of the learner 4 s: 1.25 of at most 1.667.

    In the other two rounds the machine is half as fast, then its second training alone is.
    """
    runs = [(1, 0, 5.0), (1, 1, 4.0), (2, 0, 10.0), (2, 1, 8.0), (3, 0, 5.0), (3, 1, 8.0)]
    for number, bound, seconds in runs:
        run = tmp_path / f"round-{number}" / f"staleness-{bound}"
        (run / "checkpoints" / "grpo").mkdir(parents=True)
        now = iter([step * seconds for step in range(1, 9)])
        with RunLog(run, clock=lambda now=now: next(now)) as log:
            for step in range(1, 9):
                values = {"reward/total": 1.0, "seconds/rollout": 3.0, "seconds/learn": 2.0, "staleness": float(bound)}
                log.log("grpo", step, values)
    config = Config.model_validate(
        {"run_dir": tmp_path, "grpo": {"steps": 8, "prompts_per_step": 5, "group_size": 2, "learner": {"ranks": 1}}}
    )
    figures = overlap(config, 2, 3)
    assert figures["staleness_0"]["samples_per_second"] == pytest.approx(2.0)
    assert figures["staleness_1"]["samples_per_second"] == pytest.approx(1.25)
    assert figures["ratios"] == pytest.approx([1.25, 1.25, 0.625])
    assert (figures["ratio"], figures["ideal"], figures["share_of_ideal"]) == pytest.approx((1.25, 5 / 3, 0.75))
