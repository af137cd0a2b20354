"""A training with vLLM while processes of every role are killed and stopped: it ends, and counts every sample once."""

from pathlib import Path

import pytest

from bench.soak import bench_soak
from vsr1.config import load_config

REPOSITORY = Path(__file__).parents[2]
STEPS = 16


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_training_under_faults_ends_and_counts_every_sample_once(toy_data: Path, tmp_path: Path) -> None:
    checkpoints = REPOSITORY / "checkpoints" / "toy"
    options = {
        "run_dir": tmp_path / "run",
        "data.root": toy_data,
        "model.policy": checkpoints / "sft",
        "model.embedder": checkpoints / "embedder",
        "grpo.steps": STEPS,
        "grpo.prompts_per_step": 2,
        "grpo.validate_every": "null",
        "fleet.restarts_per_hour": 1000,
        **{f"toy.{split}": count for split, count in {"train": 16, "val": 4, "test": 24}.items()},
    }
    config = load_config(REPOSITORY / "configs" / "toy.yaml", [f"{key}={value}" for key, value in options.items()])
    figures = bench_soak(config, every_s=5.0, seed=0)
    assert figures["exit_code"] == 0, (config.run_dir / "logs" / "console.log").read_text()
    assert (figures["trained"], figures["repeated"], figures["lost"]) == (STEPS * 2 * 4, 0, 0)
    assert figures["ledger_trained"] == figures["trained"]
    assert sum(figures["faults"].values()) >= 3 and sum(figures["told"]["healed"].values()) >= 1
