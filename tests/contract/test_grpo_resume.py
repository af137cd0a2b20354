"""Stage 2 with real engines and ranks, killed and gone on with: it trains each sample once, on other ranks, too."""

import subprocess
import sys
from pathlib import Path

import pytest

from bench.restarts import bench_restarts
from bench.soak import trained
from vsr1.config import load_config

REPOSITORY = Path(__file__).parents[2]
STEPS, PROMPTS, SIZE = 8, 2, 3
pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]


def test_a_killed_training_goes_on_and_trains_each_sample_once(tmp_path: Path, toy_data: Path) -> None:
    checkpoints = REPOSITORY / "checkpoints" / "toy"
    options = {
        "run_dir": tmp_path,
        "data.root": toy_data,
        "model.policy": checkpoints / "policy",
        "model.embedder": checkpoints / "embedder",
        "grpo.steps": STEPS,
        "grpo.prompts_per_step": PROMPTS,
        "grpo.group_size": SIZE,
        "grpo.validate_every": "null",
        "grpo.state_every": 2,
        "grpo.learner.ranks": 1,
        "retrieval.shards": 1,
        "rollout.max_episodes": 1,  # so that the engine adds in the same order, and the bits are the same
        "rollout.engine.max_num_seqs": 1,
        "cluster.rollout.memory_gib": 1,
        "cluster.learner.memory_gib": 0.5,
    }
    config = load_config(REPOSITORY / "configs" / "toy.yaml", [f"{key}={value}" for key, value in options.items()])
    figures = bench_restarts(config, kills=2, seed=0)
    assert sum(figures["kills"].values()) == 2
    assert figures["trained"] == figures["same_tokens"] == STEPS * PROMPTS * SIZE
    assert figures["logprob_gap"] == 0.0
    assert (figures["repeated"], figures["lost"], figures["foreign"], figures["left"]) == (0, 0, 0, 0)
    assert figures["same_weights"]
    again = [sys.executable, "-m", "pipelines", "grpo", "-c", str(tmp_path / "whole" / "logs" / "console.yaml")]
    refused = subprocess.run([*again, "seed=5"], cwd=REPOSITORY, capture_output=True, text=True, timeout=200)
    assert refused.returncode == 1 and "seed was 0, is 5" in refused.stdout + refused.stderr
    assert len(trained(tmp_path / "whole")) == STEPS * PROMPTS * SIZE
