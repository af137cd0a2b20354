"""Which runs the toy benchmark makes, from which checkpoints, and that a repeated command makes what is missing."""

from pathlib import Path

import pytest

from bench.toy import experiment
from bench.toy.experiment import Bench, BenchError, arm_names, bench
from vsr1.config import ConfigError

TOY = Path(__file__).parents[2] / "configs" / "toy-bench.yaml"


@pytest.fixture
def calls(monkeypatch):
    """Runs asked for, as (name, stage, arm, seed, policy), and the names of those that are to fail."""
    made, fails = [], set()

    def command(shared, folder, run, slot):
        policy = run.policy.relative_to(folder).parts[0] if run.policy else ""
        made.append((run.name, run.stage, run.arm, run.seed, policy))
        if run.name in fails:
            return 1
        if run.stage == "sft":
            (folder / run.name / "checkpoints" / "sft").mkdir(parents=True)
        else:
            file = folder / run.name / ("eval.json" if run.stage == "eval" else "after.json")
            file.parent.mkdir(exist_ok=True)
            file.write_text("{}")
        return 0

    monkeypatch.setattr(experiment, "_command", command)
    monkeypatch.setattr(experiment, "APART_S", 0)
    monkeypatch.setattr(experiment, "_make_data", lambda config, rewrites: None)
    monkeypatch.setattr(experiment, "results", lambda folder: "the tables")
    return made, fails


def _bench(folder: Path) -> Bench:
    return Bench((TOY,), (f"run_dir={folder}",), 1, 0, lambda text: None)


def test_stage_1_comes_first_and_each_arm_starts_from_its_own(tmp_path, calls):
    made, _ = calls
    assert bench(_bench(tmp_path), ["full", "text"], 2) == "the tables"
    assert made == [
        ("sft-0", "sft", "sft", 0, ""),
        ("sft-1", "sft", "sft", 1, ""),
        ("sfttext-0", "sft", "text", 0, ""),
        ("sfttext-1", "sft", "text", 1, ""),
        ("sft-0", "eval", "sft", 0, "sft-0"),
        ("sft-1", "eval", "sft", 1, "sft-1"),
        ("full-0", "grpo", "full", 0, "sft-0"),
        ("text-0", "grpo", "text", 0, "sfttext-0"),
        ("full-1", "grpo", "full", 1, "sft-1"),
        ("text-1", "grpo", "text", 1, "sfttext-1"),
    ]


def test_a_repeated_command_makes_what_is_missing(tmp_path, calls):
    made, fails = calls
    fails.add("full-0")
    with pytest.raises(BenchError, match=r"1 of 2 runs failed: full-0 \(.*full-0\.log\)"):
        bench(_bench(tmp_path), ["full"], 1)
    made.clear()
    fails.clear()
    bench(_bench(tmp_path), ["full"], 1)
    assert made == [("full-0", "grpo", "full", 0, "sft-0")]


def test_an_arm_that_does_not_exist_is_refused_before_anything_runs(tmp_path, calls):
    with pytest.raises(ConfigError, match=r"other\.yaml does not exist"):
        bench(_bench(tmp_path), ["other"], 1)
    assert calls[0] == []


def test_every_file_of_the_arms_is_an_arm_but_stage_1():
    assert arm_names() == ["actions", "full", "infonce", "neither", "published", "text"]
