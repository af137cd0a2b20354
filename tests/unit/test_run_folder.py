"""A run folder belongs to one run: at one time, and to the steps of one training."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.toy.demo import empty
from vsr1.config import Config
from vsr1.runs.folder import RunFolderError, check_untrained, differences, kept_in, owned, write_config
from vsr1.runs.scalars import RunLog
from vsr1.runs.state import StateError, StateFolder

HOLD = """
import sys, time, pathlib
from vsr1.runs.folder import owned
with owned(pathlib.Path(sys.argv[1]), "sft"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_a_second_training_is_refused_while_the_first_lives(tmp_path: Path, stage: str) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        message = rf"in use by `sft` of process {holder.pid} on .*; wait for its end, or give this run another run_dir"
        with pytest.raises(RunFolderError, match=message), owned(tmp_path, stage):
            raise AssertionError("both have the folder")
        with owned(tmp_path, "eval"):
            pass  # of the same folder, at the same time
    finally:
        holder.kill()
        holder.wait()
    with owned(tmp_path, stage):
        pass  # the lock of a killed run is gone with it


def test_a_demo_does_not_empty_a_folder_in_which_somebody_works(tmp_path: Path) -> None:
    config = Config.model_validate({"run_dir": tmp_path / "run", "cluster": {"num_cpus": 1}})
    weights = tmp_path / "run" / "checkpoints" / "grpo" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.touch()
    (tmp_path / "run" / "link").symlink_to(tmp_path)
    for stage in ("sft", "before", "demo"):
        in_use = pytest.raises(RunFolderError, match=f"in use by `{stage}` of process")
        with owned(config.run_dir, stage), in_use, owned(config.run_dir, "demo"):
            empty(config.run_dir)
    assert weights.is_file()
    with owned(config.run_dir, "demo"):
        empty(config.run_dir)
    assert {path.suffix for path in config.run_dir.iterdir()} == {".lock"} and tmp_path.is_dir()


def test_stages_follow_each_other_in_a_folder(tmp_path: Path) -> None:
    for stage in ("sft", "before", "grpo", "after"):
        with owned(tmp_path / "run", stage):
            holder = (tmp_path / "run" / f".{'training' if stage in ('sft', 'grpo') else stage}.lock").read_text()
            assert holder.startswith(f"`{stage}` of process {os.getpid()} on ")


def test_steps_of_another_run_are_not_added_to(tmp_path: Path) -> None:
    config = Config(run_dir=tmp_path)
    write_config(config, "grpo")
    check_untrained(config, "grpo")  # nothing was trained
    with RunLog(tmp_path) as log:
        log.log("sft", 7, {"loss": 1.0})
        log.log("val", 0, {"reward": 0.1})
    check_untrained(config, "grpo")
    with RunLog(tmp_path) as log:
        log.log("grpo", 1, {"loss": 1.0})
        log.log("grpo", 5, {"loss": 1.0})
    before = sorted((path.name, path.read_bytes()) for path in tmp_path.iterdir() if path.is_file())
    with pytest.raises(
        RunFolderError, match=r"holds 5 steps of an earlier grpo \(the same settings\).*another run_dir"
    ):
        check_untrained(config, "grpo")
    other = config.model_copy(update={"seed": 3, "rewards": config.rewards.model_copy(update={"retrieval": 0.5})})
    with pytest.raises(RunFolderError, match=r"\(rewards\.retrieval was 0\.8, is 0\.5; seed was 0, is 3\)"):
        check_untrained(other, "grpo")
    after = sorted((path.name, path.read_bytes()) for path in tmp_path.iterdir() if path.is_file())
    assert before == after


def test_a_run_that_began_without_a_state_is_still_that_run(tmp_path: Path) -> None:
    states = StateFolder(tmp_path / "state" / "sft")
    assert states.claim({"seed": 1}, {}) is None
    states.begin({"seed": 1})
    assert states.claim({"seed": 1}, {}) is None
    with pytest.raises(StateError, match="seed was 1, is 2"):
        states.claim({"seed": 2}, {})
    with states.saving(4, {"seed": 1}):
        pass
    assert states.claim({"seed": 1}, {}) == (4, states.root / "step-4")


def test_settings_that_differ_are_named_by_dotted_key() -> None:
    old = {"a": {"b": 1, "old": 2}, "c": [1, 2]}
    assert differences(old, {"a": {"b": 1, "new": 2}, "c": [1, 2]}, {"a.old": "a.new"}) == []
    assert differences(old, {"a": {"b": 3}, "d": 1}) == [
        "a.b was 1, is 3", "a.old was 2, is 'not set'", "c was [1, 2], is 'not set'", "d was 'not set', is 1"
    ]  # fmt: skip
    assert differences(old, {"a": {"b": 3}, "d": 1}, both=True) == ["a.b was 1, is 3"]


def test_what_a_stopped_run_leaves_is_named(tmp_path: Path) -> None:
    assert kept_in(tmp_path) == f"kept in {tmp_path}: logs only, no state and no checkpoint"
    (tmp_path / "ledger").mkdir()
    (tmp_path / "ledger" / "0.journal").touch()
    assert kept_in(tmp_path) == f"kept in {tmp_path}: ledger (rollouts; the same command takes them)"
    for folder in ("state/sft/step-9", "state/sft/step-10", "checkpoints/step-2", "checkpoints/start"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "checkpoints" / "best.json").touch()
    assert kept_in(tmp_path) == (
        f"kept in {tmp_path}: state/sft/step-10 (the same command goes on from it), checkpoints/step-2"
    )
