"""Every recipe fits the nodes that it declares, by reservation and by memory, in a dry run that starts nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.machine.nodes import planned_capacity
from pipelines.machine.packing import has_labels, place, rooms_of
from pipelines.machine.placement import placement_plan
from vsr1.config import load_config
from vsr1.settings.parts import Node, PlacedResources

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = sorted((CONFIGS / "recipes").glob("*.yaml"))
QWEN_2B = {
    "tie_word_embeddings": True,
    "refine_dim": 2048,
    "text_config": {
        "num_hidden_layers": 28, "hidden_size": 2048, "intermediate_size": 6144, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936,
    },
    "vision_config": {
        "depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "spatial_merge_size": 2,
        "deepstack_visual_indexes": [5, 11, 17], "in_channels": 3, "temporal_patch_size": 2, "patch_size": 16,
    },
}  # fmt: skip


@pytest.fixture
def models(tmp_path: Path) -> list[str]:
    for name in ("policy", "embedder"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(QWEN_2B))
    return [f"model.{name}={tmp_path / name}" for name in ("policy", "embedder")] + [f"run_dir={tmp_path / 'run'}"]


def arguments(recipe: Path, *options: str) -> list[str]:
    return ["-c", str(CONFIGS / "charades.yaml"), "-c", str(recipe), *options]


@pytest.mark.parametrize("stage", ["sft", "grpo", "eval"])
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_fits_its_nodes(recipe: Path, stage: Any, models: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: Any, **__: Any) -> None:
        raise AssertionError("a dry run on declared nodes starts no Ray")

    monkeypatch.setattr("ray.init", started)
    if stage != "eval":
        monkeypatch.setattr(f"pipelines.train.{stage}.check", lambda settings: None)  # of a dataset, which is not there
    if stage == "sft" and "colocated" in recipe.stem:
        models = [*models, "cluster.learner.gpus=1"]  # as the recipe says
    result = CliRunner().invoke(app, [stage, "--dry-run", *arguments(recipe, *models)], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output + result.stderr
    assert "what cluster.nodes declares" in result.output and "memory of a GPU (reckoned)" in result.output
    config = load_config([CONFIGS / "charades.yaml", recipe], models)
    plan = placement_plan(config, stage, planned_capacity(config))
    left, gpus = plan.packed()
    assert left is None
    if stage == "grpo" and "colocated" in recipe.stem:
        assert all((gpu.actors["learner rank"], gpu.actors["rollout worker"]) == (1, 1) for gpu in gpus)
    for gpu in gpus:
        assert gpu.size_gib is not None and sum(gpu.taken_gib.values()) < gpu.size_gib, gpu.taken_gib


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_how_many_gpus_it_is_for(recipe: Path) -> None:
    names = {"one": 1, "two": 2, "four": 4, "eight": 8}
    config = load_config(recipe)
    gpus = sum(node.gpus for node in planned_capacity(config).nodes)
    assert gpus == names.get(recipe.stem.split("-")[0], gpus)
    assert set(yaml.safe_load(recipe.read_text())) <= set(config.model_dump()), "sections only"


def test_a_learner_too_large_for_its_gpu_is_refused_with_what_to_lower(models: list[str]) -> None:
    large = ["grpo.learner.gradient_checkpointing=false", "grpo.learner.micro_tokens=60000"]
    result = CliRunner().invoke(
        app, ["grpo", "--dry-run", *arguments(CONFIGS / "recipes/two-gpus.yaml", *models, *large)]
    )
    assert result.exit_code == 1
    assert "a GPU of 80 GiB would hold" in result.stderr and "lower learner.micro_tokens of the stage" in result.stderr


def test_two_learner_ranks_on_one_gpu_are_refused() -> None:
    recipe = CONFIGS / "recipes/two-gpus.yaml"
    config = load_config(recipe, ["cluster.learner.gpus=0.4", "grpo.learner.ranks=2", "rollout.workers=1"])
    [line] = placement_plan(config, "grpo", planned_capacity(config)).shortages()
    assert "two learner ranks would share a GPU" in line and "raise cluster.learner.gpus above 0.5" in line


def test_an_engine_that_shares_its_gpu_with_the_learner_has_a_cache_of_a_size() -> None:
    config = load_config(CONFIGS / "recipes/one-gpu.yaml", ["rollout.engine.kv_cache_gib=null"])
    [line] = placement_plan(config, "grpo", planned_capacity(config)).shortages()
    assert "cluster.rollout.gpus=0.3" in line and line.endswith("set rollout.engine.kv_cache_gib")
    assert not placement_plan(config, "eval", planned_capacity(config)).shortages()


def test_shares_of_gpus_are_of_one_gpu_each() -> None:
    rooms = rooms_of([Node(cpus=8, gpus=2, memory_gib=8)])
    most = PlacedResources(cpus=1, gpus=0.6, memory_gib=1)
    assert place(rooms, "a", most, 2) and not place(rooms, "a", most, 1), "1.2 of 2 GPUs are taken, none has 0.6 left"
    assert place(rooms, "b", PlacedResources(cpus=1, gpus=0.4, memory_gib=1), 2)
    assert not place(rooms_of([Node(cpus=8, gpus=1.5, memory_gib=8)]), "c", PlacedResources(gpus=2), 1)


@pytest.mark.parametrize(
    ("strategy", "count", "fits"),
    [("pack", 3, True), ("strict_pack", 2, True), ("strict_pack", 3, False), ("strict_spread", 2, True),
     ("strict_spread", 3, False), ("spread", 3, True)],
)  # fmt: skip
def test_strategies(strategy: str, count: int, fits: bool) -> None:
    """Two nodes, each with room for two actors."""
    rooms = rooms_of([Node(cpus=2, memory_gib=2)] * 2)
    need = PlacedResources.model_validate({"cpus": 1, "memory_gib": 1, "strategy": strategy})
    assert place(rooms, "a", need, count) == fits
    if fits and count == 2:
        assert sorted(room.cpus for room in rooms) == ([0, 2] if strategy == "strict_pack" else [1, 1])


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [("spot", True), ("!spot", False), ("in(spot, burst)", True), ("!in(spot,burst)", False), ("other", False)],
)
def test_labels_are_read_as_ray_reads_them(wanted: str, fits: bool) -> None:
    from ray._private.label_utils import validate_label_selector

    assert not validate_label_selector({"pool": wanted.replace(", ", ",")})
    assert has_labels(Node(labels={"pool": "spot"}), {"pool": wanted}) == fits


def test_labels_that_no_node_has_are_named() -> None:
    config = load_config(CONFIGS / "recipes/spot.yaml", ["cluster.shard.labels={pool: disks}"])
    [line] = placement_plan(config, "grpo", planned_capacity(config)).shortages()
    assert "has the labels {'pool': 'disks'} of a retrieval shard" in line and "cluster.shard.labels" in line


def test_autoscaled_nodes_count_where_they_are_not_there_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.machine import nodes

    head, spot = Node(cpus=4, memory_gib=8), Node(cpus=14, gpus=1, memory_gib=100, labels={"pool": "spot"})
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr(nodes, "_living_nodes", lambda free=False: (head, spot))
    config = load_config(CONFIGS / "recipes/spot.yaml", ["cluster.address=head:6379"])
    there = nodes.capacity(config)
    assert there.name == "the cluster at head:6379 with 10 nodes that may come"
    assert sum(node.gpus for node in there.nodes) == 1 + 7 + 2
    with pytest.raises(ValueError, match="autoscaled nodes need labels"):
        load_config(None, ["cluster.nodes={a: {cpus: 1, memory_gib: 1, autoscaled: true}}"])


def test_a_strict_strategy_is_for_the_learner_alone() -> None:
    with pytest.raises(ValueError, match=r"cluster\.rollout\.strategy: take pack or spread"):
        load_config(None, ["cluster.rollout.strategy=strict_pack"])
