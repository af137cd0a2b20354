"""Which runs the toy benchmark makes, from which checkpoints, and what a repeated command makes."""

import sys
from pathlib import Path

import pytest

from bench.toy.experiment import ARMS, Bench, BenchError, Run, arm_names, bench, missing, plan, play_all
from vsr1.config import ConfigError

TOY = Path(__file__).parents[2] / "configs" / "toy-bench.yaml"


def test_stage_1_comes_first_and_each_arm_starts_from_its_own() -> None:
    stage_1, others = plan(["full", "text", "words"], 2, in_words=["text", "words"])
    assert stage_1 == [
        Run("sft-0", "sft", "sft", 0),
        Run("sft-1", "sft", "sft", 1),
        Run("sfttext-0", "sft", "text", 0),
        Run("sfttext-1", "sft", "text", 1),
    ]
    assert others == [
        Run("sft-0", "eval", "sft", 0, "sft-0"),
        Run("sft-1", "eval", "sft", 1, "sft-1"),
        Run("full-0", "grpo", "full", 0, "sft-0"),
        Run("text-0", "grpo", "text", 0, "sfttext-0"),
        Run("words-0", "grpo", "words", 0, "sfttext-0"),
        Run("full-1", "grpo", "full", 1, "sft-1"),
        Run("text-1", "grpo", "text", 1, "sfttext-1"),
        Run("words-1", "grpo", "words", 1, "sfttext-1"),
    ]


def test_without_arms_stage_1_is_trained_and_evaluated() -> None:
    assert plan([], 1, in_words=[]) == ([Run("sft-0", "sft", "sft", 0)], [Run("sft-0", "eval", "sft", 0, "sft-0")])


def test_a_repeated_command_makes_what_is_missing(tmp_path: Path) -> None:
    stage_1, others = plan(["full"], 2, in_words=[])
    assert missing(stage_1, tmp_path) == stage_1
    (tmp_path / "sft-0" / "checkpoints" / "sft").mkdir(parents=True)
    (tmp_path / "sft-1" / "checkpoints").mkdir(parents=True)
    (tmp_path / "full-0").mkdir()
    (tmp_path / "full-1").mkdir()
    for ended in ("sft-1/eval.json", "full-1/after.json"):
        (tmp_path / ended).touch()
    assert missing(stage_1, tmp_path) == [Run("sft-1", "sft", "sft", 1)]
    assert [run.name for run in missing(others, tmp_path)] == ["sft-0", "full-0"]


def test_a_run_has_the_settings_of_its_arm_and_starts_from_the_checkpoint_of_its_stage_1(tmp_path: Path) -> None:
    shared = Bench((TOY,), ("grpo.steps=3",), 1, 0, print)
    files = ["--config", str(TOY), "--config", str(ARMS / "text.yaml")]
    start = f"model.policy={tmp_path / 'sfttext-4' / 'checkpoints' / 'sft'}"
    assert Run("text-4", "grpo", "text", 4, "sfttext-4").command(shared, tmp_path) == [
        sys.executable, "-m", "pipelines", "grpo", *files, "grpo.steps=3", "seed=4", f"run_dir={tmp_path / 'text-4'}",
        start,
    ]  # fmt: skip
    assert "model.policy" not in " ".join(Run("sft-4", "sft", "sft", 4).command(shared, tmp_path))


def test_runs_that_fail_are_named_with_their_logs_and_do_not_stop_the_others() -> None:
    runs, _ = plan([], 5, in_words=[])
    lines: list[str] = []
    busy: set[int] = set()

    def play(run: Run, slot: int) -> int:
        assert slot not in busy
        busy.add(slot)
        busy.remove(slot)
        return int(run.seed in (1, 3))

    failures = play_all(runs, 2, play, lines.append, apart_s=0)
    assert str(BenchError(failures, len(runs), Path("runs"))) == (
        "2 of 5 runs failed: sft-1 (runs/sft-1.log), sft-3 (runs/sft-3.log); repeat the command for them"
    )
    assert sorted(lines) == sorted(
        f"sft-{seed}: sft {event}"
        for seed in range(5)
        for event in ("begins", "failed" if seed in (1, 3) else "is complete")
    )


def test_an_arm_that_does_not_exist_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"other\.yaml does not exist"):
        bench(Bench((TOY,), (f"run_dir={tmp_path / 'run'}",), 1, 0, print), ["other"], 1)
    assert not (tmp_path / "run").exists()


def test_every_file_of_the_arms_is_an_arm_but_stage_1() -> None:
    assert arm_names() == ["actions", "full", "infonce", "neither", "published", "text"]
