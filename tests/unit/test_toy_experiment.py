"""Which runs the toy benchmark makes, from which checkpoints, and what a repeated command makes."""

import sys
from pathlib import Path

import pytest

from bench.toy.experiment import (
    ARMS,
    METHODS,
    Bench,
    BenchError,
    Run,
    arm_names,
    bench,
    exit_code,
    missing,
    plan,
    play_all,
    sources,
)
from vsr1.config import Config, ConfigError

TOY = Path(__file__).parents[2] / "configs" / "toy-bench.yaml"
SHARED = Bench((TOY,), ("grpo.steps=3",), 1, 0, print)
SFT = "checkpoints/sft"


def test_stage_1_comes_first_and_each_arm_starts_from_its_own() -> None:
    stage_1, trained, evaluations = plan(["full", "text", "words", "longer"], range(1, 3), ["text", "words"], ("hard",))
    assert stage_1 == [
        Run("sft-1", "sft", "sft", 1),
        Run("sft-2", "sft", "sft", 2),
        Run("sfttext-1", "sft", "text+sft", 1),
        Run("sfttext-2", "sft", "text+sft", 2),
    ]
    assert trained == [
        run
        for seed in (1, 2)
        for run in (
            Run(f"sft-{seed}", "eval", "sft", seed, f"sft-{seed}/{SFT}"),
            Run(f"full-{seed}", "grpo", "full", seed, f"sft-{seed}/{SFT}"),
            Run(f"text-{seed}", "grpo", "text", seed, f"sfttext-{seed}/{SFT}"),
            Run(f"words-{seed}", "grpo", "words", seed, f"sfttext-{seed}/{SFT}"),
            Run(f"longer-{seed}", "sft", "longer", seed, f"sft-{seed}/{SFT}"),
        )
    ]
    hard = ("eval.split=hard",)
    assert evaluations[4:6] == [
        Run("longer-1", "eval", "longer", 1, f"longer-1/{SFT}"),
        Run("longer@hard-1", "eval", "longer", 1, f"longer-1/{SFT}", hard),
    ]
    assert evaluations[1] == Run("full@hard-1", "eval", "full", 1, "full-1/checkpoints/grpo", hard)
    assert len(evaluations) == 2 * (1 + 5), "the longer Stage 1 on `test`, every arm on `hard`"


def test_without_arms_stage_1_is_trained_and_evaluated() -> None:
    assert plan([], range(1), in_words=[]) == (
        [Run("sft-0", "sft", "sft", 0)],
        [Run("sft-0", "eval", "sft", 0, f"sft-0/{SFT}")],
        [],
    )


def test_a_repeated_command_makes_what_is_missing(tmp_path: Path) -> None:
    stage_1, others, _ = plan(["full"], range(2), in_words=[])
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
    files = ["--config", str(TOY), "--config", str(ARMS / "text.yaml"), "--config", str(METHODS / "black.yaml")]
    start = f"model.policy={tmp_path / 'sfttext-4' / 'checkpoints' / 'sft'}"
    run = Run("text+black-4", "grpo", "text+black", 4, f"sfttext-4/{SFT}")
    assert run.command(SHARED, tmp_path) == [
        sys.executable, "-m", "pipelines", "grpo", *files, "grpo.steps=3", "seed=4",
        f"run_dir={tmp_path / 'text+black-4'}", start,
    ]  # fmt: skip
    assert "model.policy" not in " ".join(Run("sft-4", "sft", "sft", 4).command(SHARED, tmp_path))


def test_models_and_corpora_come_before_what_needs_them() -> None:
    folder = SHARED.settings().run_dir
    settings = {arm: SHARED.settings(arm) for arm in ("sft", "full", "full+black", "text")}
    first, second = sources(settings, folder)
    assert [(run.name, run.stage, run.arm) for run in first] == [
        ("models/black", "pretrain", "sft"),
        ("data-more-none", "data", "full"),
        ("data-few-rules", "data", "sft"),
    ]
    assert first[2].own == ("seed=0", "agent.refinement=text"), "texts are made where Stage 1 learns from them"
    assert [run.name for run in second] == ["data-black-none"], "its index needs the other embedder"
    command = first[0].command(SHARED, folder)
    assert command[command.index("--out") + 1] == str(folder / "models" / "black")
    assert command[command.index("--policy-steps") + 1] == "0"


def test_the_ceiling_has_traces_of_the_films_that_stage_2_has_labels_of() -> None:
    settings = {arm: SHARED.settings(arm) for arm in ("sft", "ceiling", "full")}
    first, _ = sources(settings, SHARED.settings().run_dir)
    assert [run.name for run in first] == ["data-more-rules", "data-few-rules"]
    ceiling, full, few = settings["ceiling"], settings["full"], settings["sft"]
    assert (ceiling.data.root, ceiling.toy) == (full.data.root, full.toy)
    assert full.toy.skip >= few.toy.train, "no film of Stage 1 comes again"
    assert ceiling.sft.limit_s == full.grpo.limit_s


def test_runs_that_fail_are_named_with_their_logs_and_do_not_stop_the_others() -> None:
    runs, *_ = plan([], range(5), in_words=[])
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


@pytest.mark.parametrize(("visible", "used"), [(None, ["0", "1", "0"]), ("2,3", ["2", "3", "2"])])
def test_runs_take_turns_on_the_gpus_that_the_command_may_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, used: list[str]
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    show = [sys.executable, "-c", "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"]
    for slot, number in enumerate(used):
        assert exit_code(Run(f"run-{slot}", "sft", "sft"), tmp_path, show, slot, 2) == 0
        assert (tmp_path / f"run-{slot}.log").read_text() == f"{number}\n"


def test_an_arm_that_does_not_exist_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"other\.yaml does not exist"):
        bench(Bench((TOY,), (f"run_dir={tmp_path / 'run'}",), 1, 0, print), ["other"], range(1))
    assert not (tmp_path / "run").exists()


def test_every_file_of_the_arms_is_an_arm_but_stage_1_and_every_method_can_join_one() -> None:
    assert arm_names() == ["actions", "ceiling", "full", "infonce", "longer", "neither", "published", "text"]
    for file in METHODS.glob("*.yaml"):
        assert isinstance(SHARED.settings(f"full+{file.stem}"), Config)
