"""The pools of the tools in the plan: the GPUs of their engines, the memory of these, and what does not fit."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipelines.machine.nodes import planned_capacity
from pipelines.machine.placement import Plan, placement_plan
from vsr1.config import load_config
from vsr1.formats.dataset import DatasetFolder

from .test_plan import counts, text
from .test_recipes import QWEN_2B

GPU_NODES = "cluster.nodes={any: {cpus: 64, gpus: %d, gpu_memory_gib: 80, memory_gib: 512}}"
QWEN_8B = QWEN_2B | {
    "tie_word_embeddings": False,
    "text_config": QWEN_2B["text_config"]
    | {"num_hidden_layers": 36, "hidden_size": 4096, "intermediate_size": 12_288, "num_attention_heads": 32},
}
WEIGHTS_8B = 15.9  # GiB in bfloat16: 36 layers of 193 million parameters, two word tables of 622, a tower of 407


def plan(tmp_path: Path, environment: str, *options: str, gpus: int = 8) -> Plan:
    for name, sizes in (("policy", QWEN_2B), ("embedder", QWEN_2B), ("captioner", QWEN_8B)):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "config.json").write_text(json.dumps(sizes))
    models = [f"model.{name}={tmp_path / name}" for name in ("policy", "embedder")]
    captioner = f"navigate.pools.captioner={{kind: vllm, folder: {tmp_path / 'captioner'}}}"
    device = ["model.device=cuda", "model.dtype=bfloat16", "cluster.rollout.gpus=1", "cluster.retrieval.gpus=0.2"]
    settings = [f"environment={environment}", *models, captioner, *device, "grpo.validate_every=null", GPU_NODES % gpus]
    settings += ["agent.refinement=none"] * (environment == "navigate")
    config = load_config(None, [*settings, *options])
    return placement_plan(config, "eval", planned_capacity(config))


@pytest.mark.parametrize("environment", ["navigate", "search_then_navigate"])
def test_an_engine_of_a_pool_takes_a_gpu_and_its_memory_is_shown(tmp_path: Path, environment: str) -> None:
    whole = plan(tmp_path, environment, "navigate.pools.captioners=2", "navigate.pools.answerers=3")
    whole.check()
    assert (counts(whole)["captioner"], counts(whole)["answerer"]) == (2, 3)
    searched = 0.2 * (environment == "search_then_navigate")
    assert whole.total("gpus") == pytest.approx(1 + 2 + 3 + searched)
    roles = {role.name: role.memory for role in whole.roles}
    assert roles["captioner"] == roles["answerer"]
    assert roles["captioner"]["weights"] == pytest.approx(WEIGHTS_8B, rel=0.02)
    assert roles["captioner"]["weights"] + roles["captioner"]["key-value cache"] == pytest.approx(0.9 * 80)
    assert f"{roles['captioner']['key-value cache']:.1f}" in text(whole)


def test_a_pool_without_engines_of_its_own_takes_no_gpu(tmp_path: Path) -> None:
    toy = plan(tmp_path, "navigate", "navigate.pools.captioner.kind=toy", gpus=1)
    assert counts(toy)["captioner"] == 1 and toy.total("gpus") == 1
    assert "captioner" not in {role.name for role in toy.roles if role.memory}
    assert "captioner" not in counts(plan(tmp_path, "search"))


def test_pools_that_do_not_fit_are_refused_with_their_keys(tmp_path: Path) -> None:
    [few] = plan(tmp_path, "navigate", "navigate.pools.captioners=4", gpus=4).shortages()
    assert few.startswith("the evaluation needs 6 GPUs, what cluster.nodes declares has 4: lower")
    assert "navigate.pools.captioners=4" in few
    engine = "navigate.pools.captioner.engine"
    lines = plan(tmp_path, "navigate", f"{engine}.gpu_memory_utilization=0.25").shortages()
    assert len(lines) == 2 and lines[0].startswith("a captioner's engine has 3.9 GiB for its key-value cache")
    assert f"hold no request of {engine}.max_model_len=32768: raise {engine}.gpu_memory_utilization" in lines[0]
    over = plan(tmp_path, "navigate", f"{engine}.kv_cache_gib=90").shortages()
    ways = f"lower {engine}.gpu_memory_utilization or {engine}.kv_cache_gib"
    assert over == [f"a GPU of 80 GiB would hold 108 of {role} GiB: {ways}" for role in ("answerer", "captioner")]


def test_a_shard_on_a_gpu_takes_its_share_and_the_memory_of_its_vectors(tmp_path: Path) -> None:
    file = DatasetFolder(tmp_path).video_embeddings("train")
    file.parent.mkdir(parents=True)
    np.lib.format.open_memmap(file, "w+", np.float32, (2_000_000, 2048))  # sparse: nothing of it is written
    options = [f"data.root={tmp_path}", "data.splits=[train]", "cluster.shard.gpus=0.3"]
    two = plan(tmp_path, "search", *options, "retrieval.shards=2")
    two.check()
    assert two.total("gpus") == pytest.approx(1 + 0.2 + 2 * 0.3)
    [memory] = [role.memory for role in two.roles if role.name == "retrieval shard"]
    assert memory == {"vectors": pytest.approx(7.63, abs=0.01), "work": 1.5, "context": 0.5}
    whole = plan(tmp_path, "search", *options, "retrieval.shards=1", "cluster.nodes.any.gpu_memory_gib=12").shortages()
    assert any("17 of retrieval shard" in line and "by more retrieval.shards" in line for line in whole), whole


def test_an_engine_of_rollouts_that_could_not_start_is_refused_too(tmp_path: Path) -> None:
    [line] = plan(tmp_path, "search", "rollout.engine.gpu_memory_utilization=0.05").shortages()
    assert line.startswith("a rollout worker's engine has") and "rollout.engine.max_model_len=1024" in line
