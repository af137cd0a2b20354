"""Both stages and the evaluation, every part real: weights move, versions advance, and a dead part stops the step."""

import asyncio
import json
import re
import sys
import threading
import time
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from shutil import copytree

import pytest
import ray
from safetensors.torch import load_file

from actors.rollout import start_engine
from pipelines.evaluation.evaluate import evaluate
from pipelines.machine.placement import PlanError
from pipelines.train import grpo, sft
from vsr1.config import Config, load_config
from vsr1.formats.dataset import DatasetFolder
from vsr1.model.policy import HEAD_NAMES
from vsr1.runs.scalars import read_scalars
from vsr1.runs.state import StateError
from vsr1.settings.parts import ActorResources

from .options import CONFIG, REPOSITORY

pytestmark = pytest.mark.timeout(600)


def _weights(folder: Path) -> dict:
    return load_file(folder / "model.safetensors")


def test_each_stage_moves_what_it_trains(run: Config) -> None:
    start = _weights(REPOSITORY / "checkpoints" / "toy" / "policy")
    first, second = (_weights(run.run_dir / "checkpoints" / stage) for stage in ("sft", "grpo"))
    assert set(start) == set(first) == set(second)

    def moved(a: dict, b: dict, part: str) -> bool:
        names = [name for name in a if part in name]
        assert names, part
        return any(not a[name].float().equal(b[name].float()) for name in names)

    for part in ("language_model.layers", "visual.merger", HEAD_NAMES[0]):
        assert moved(start, first, part), f"Stage 1 left {part} as it was"
    assert not moved(start, first, "visual.blocks")
    for part in ("language_model.layers", HEAD_NAMES[0]):
        assert moved(first, second, part), f"Stage 2 left {part} as it was"
    assert not moved(first, second, "visual")


def test_rollouts_after_a_push_come_from_the_pushed_weights(run: Config) -> None:
    lines = (run.run_dir / "train_trajectories.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 2 * 2 * 3
    for row in rows:
        assert {turn["weight_version"] for turn in row["turns"]} == {row["step"] - 1}
        assert 1 <= len(row["turns"]) <= 3


def test_the_learner_agrees_with_the_engine_before_and_after_the_push(run: Config) -> None:
    scalars = {(r["stage"], r["step"], r["name"]): r["value"] for r in read_scalars(run.run_dir / "scalars.jsonl")}
    for step in (1, 2):
        assert abs(scalars["grpo", step, "mismatch/mean"]) < 1e-4
        assert scalars["grpo", step, "mismatch/gap_max"] < 1e-2
    assert ("sft", 2, "token_loss") in scalars and ("sft", 2, "retrieval_loss") in scalars
    assert {name for stage, _, name in scalars if stage == "grpo"} >= {"reward/total", "mismatch/mean", "seconds/push"}
    assert list((run.run_dir / "tensorboard").glob("*tfevents*"))


def test_stage_2_is_evaluated_before_and_after_with_the_weights_of_then(run: Config) -> None:
    policies = {name: load_config(run.run_dir / f"config.{name}.yaml").model.policy for name in ("before", "after")}
    assert [path.parts[-2:] for path in policies.values()] == [("checkpoints", "sft"), ("checkpoints", "grpo")]
    prints = {
        name: {row["fingerprint"] for row in map(json.loads, (run.run_dir / f"{name}.jsonl").read_text().splitlines())}
        for name in policies
    }
    assert len(prints["before"]) == 1 and prints["before"].isdisjoint(prints["after"])
    versions = {
        name: {turn["weight_version"] for line in log.read_text().splitlines() for turn in json.loads(line)["turns"]}
        for name in policies
        for log in [run.run_dir / f"{name}.trajectories.jsonl"]
    }
    assert versions == {"before": {0}, "after": {2}}


@pytest.mark.parametrize(
    ("stage", "own"),
    [
        ("sft", r"sft step [12]/2: |checkpoint: |still "),
        ("grpo", r"grpo step [12]/2: |before step 1/1: |after step 1/1: |checkpoint: |still "),
    ],
)
def test_a_good_run_prints_its_own_lines_only(run: Config, stage: str, own: str) -> None:
    """The log of a job holds both of its streams; `ray job submit` prints lines of its own before and after it."""
    _, _, log = (run.run_dir / f"{stage}.job").read_text().partition("Running entrypoint for job ")
    lines = [line for line in takewhile(lambda line: " cli.py:" not in line, log.splitlines()[1:]) if line]
    assert len(lines) >= 3 and [line for line in lines if not re.match(own, line)] == []
    assert "ray._private.worker: " in (run.run_dir / "logs" / "driver.log").read_text()


@pytest.fixture
def ended(run: Config, tmp_path: Path) -> Config:
    """The run of Stage 1 with its state, in a folder of its own without the checkpoint."""
    copytree(run.run_dir / "state", tmp_path / "state")
    return load_config(run.run_dir / "config.sft.yaml", [f"run_dir={tmp_path}"])


@pytest.mark.usefixtures("ray_cluster")
def test_a_state_is_not_continued_under_other_settings(ended: Config) -> None:
    faster = ended.sft.learner.model_copy(update={"learning_rate": 2e-3})
    config = ended.model_copy(update={"sft": ended.sft.model_copy(update={"learner": faster})})
    with pytest.raises(StateError, match=r"sft\.learner\.learning_rate was 2e-05, is 0\.002.*another run_dir"):
        sft.train(config)


@pytest.mark.usefixtures("ray_cluster")
def test_a_finished_run_writes_its_checkpoint_again(run: Config, ended: Config) -> None:
    wanted, again = _weights(run.run_dir / "checkpoints" / "sft"), load_file(sft.train(ended) / "model.safetensors")
    assert all(wanted[name].equal(again[name]) for name in wanted)


@pytest.mark.chaos
@pytest.mark.usefixtures("ray_cluster")
def test_a_dead_retrieval_service_stops_the_step_with_its_name(run: Config, tmp_path: Path) -> None:
    """It is killed while rollouts run: no empty results, no further step."""
    steps = 50
    changes = {"run_dir": tmp_path, "grpo": run.grpo.model_copy(update={"steps": steps})}
    config = run.model_copy(update=changes)
    trajectories = tmp_path / "train_trajectories.jsonl"

    def kill() -> None:
        while not trajectories.is_file() or not trajectories.read_text():
            time.sleep(0.05)
        ray.kill(ray.get_actor("retrieval-train"))

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(ray.exceptions.RayError, match="retrieval-train") as caught:
        grpo.train(config)
    killer.join()
    _check_post_mortem(config, caught.value)
    rows = [json.loads(line) for line in trajectories.read_text().splitlines()]
    assert max(row["step"] for row in rows) < steps
    assert all(turn["record"]["retrieved"] for row in rows for turn in row["turns"])


def _check_post_mortem(config: Config, error: Exception) -> None:
    [folder] = config.run_dir.glob("post-mortem-*Z")
    assert f"post-mortem: {folder}" in error.__notes__
    assert "retrieval-train" in (folder / "traceback.txt").read_text()
    assert load_config(folder / "config.yaml") == config == load_config(config.run_dir / "config.grpo.yaml")
    names = {path.name for path in (folder / "logs").iterdir()}
    assert names >= {"rollout-0.log", "learner-0.log", "retrieval-train.log", "reward-0.log", "shard-train-0-0.log"}
    assert all("begins" in (folder / "logs" / name).read_text() for name in names)
    assert "EngineCore" in (folder / "logs" / "rollout-0.log").read_text(), "vLLM's own process writes there too"
    assert max(row["step"] for row in read_scalars(folder / "scalars.jsonl")) >= 1
    assert json.loads((folder / "timeline.json").read_text()), "Ray was up"
    assert json.loads((folder / "versions.json").read_text())["ray"] == ray.__version__


def test_without_vllm_there_is_no_other_engine(run: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing vLLM fails as if it were not installed."""
    for name in [name for name in sys.modules if name.startswith("vllm.")]:  # those of an earlier test
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ModuleNotFoundError, match="vllm"):
        asyncio.run(start_engine(run, run.model.policy))


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("stage", [sft.train, grpo.train, evaluate])
def test_a_stage_that_does_not_fit_is_refused_before_it_waits(run: Config, tmp_path: Path, stage: Callable) -> None:
    large = {role: ActorResources(gpus=9) for role in ("learner", "rollout")}
    cluster = run.cluster.model_copy(update=large)
    with pytest.raises(PlanError, match="needs 9 GPUs, the largest node of this machine has 0: lower cluster"):
        stage(run.model_copy(update={"cluster": cluster, "run_dir": tmp_path}))


@pytest.mark.usefixtures("ray_cluster")
def test_a_missing_dataset_is_named(tmp_path: Path) -> None:
    config = load_config(CONFIG, ["toy.create=false", f"data.root={tmp_path}", f"run_dir={tmp_path / 'run'}"])
    with pytest.raises(FileNotFoundError, match="vsr1 data build"):
        sft.train(config)
    assert not DatasetFolder(tmp_path).sft_records().exists()
