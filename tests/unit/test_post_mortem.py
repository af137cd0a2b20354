"""A stage that fails leaves a folder, and its own error whatever happens to the folder."""

import json
import shutil
from pathlib import Path

import pytest

from pipelines.command import guarded
from pipelines.stage import post_mortem
from pipelines.stage.post_mortem import LAST_STEPS, LOG_TAIL_BYTES, kept_in_folder
from vsr1.config import Config, load_config
from vsr1.runs.scalars import RunLog, read_scalars


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(run_dir=tmp_path)


def fail(config: Config) -> pytest.ExceptionInfo[ValueError]:
    with pytest.raises(ValueError, match="the reason") as caught, kept_in_folder(config, "grpo"):
        raise ValueError("the reason")
    return caught


def test_the_folder_holds_what_explains_the_failure(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "do not tell")
    run = config.run_dir
    with RunLog(run) as log:
        for step in range(1, LAST_STEPS + 6):
            log.log("grpo", step, {"reward/total": 0.1, "loss": 0.2})
    (run / "logs").mkdir()
    (run / "logs" / "rollout-0.log").write_bytes(b"old" + b"x" * LOG_TAIL_BYTES)
    caught = fail(config)
    [folder] = run.glob("post-mortem-*Z")
    assert caught.value.__notes__ == [f"post-mortem: {folder}"]
    assert "ValueError: the reason" in (folder / "traceback.txt").read_text()
    assert load_config(folder / "config.yaml") == config
    versions = json.loads((folder / "versions.json").read_text())
    assert {"python", "torch", "ray", "vllm", "deepspeed", "faiss", "transformers", "gpus"} <= versions.keys()
    assert {row["step"] for row in read_scalars(folder / "scalars.jsonl")} == set(range(6, LAST_STEPS + 6))
    assert (folder / "logs" / "rollout-0.log").read_bytes() == b"x" * LOG_TAIL_BYTES
    assert not any("do not tell" in path.read_text() for path in folder.rglob("*") if path.is_file())


def test_a_part_that_cannot_be_written_leaves_the_others_and_its_reason(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(post_mortem, "write_json", full)
    caught = fail(config)
    [folder] = config.run_dir.glob("post-mortem-*Z")
    assert caught.value.__notes__ == [f"post-mortem: {folder}"]
    assert {path.name for path in folder.iterdir()} == {"traceback.txt", "config.yaml", "logs", "incomplete.txt"}
    assert (folder / "incomplete.txt").read_text() == "write_versions: OSError('no space left')\n"


def test_an_error_while_writing_does_not_hide_the_first(config: Config) -> None:
    with pytest.raises(ValueError, match="the reason") as caught, kept_in_folder(config, "grpo"):
        shutil.rmtree(config.run_dir)
        config.run_dir.write_text("a file where the folder was")
        raise ValueError("the reason")
    [note] = caught.value.__notes__
    assert note.startswith("no post-mortem, because writing it failed: ")


@pytest.mark.parametrize("cut", [0, 1, 32, 75, 90])
def test_a_run_that_was_killed_at_any_byte_has_a_post_mortem(config: Config, cut: int) -> None:
    """Its log of scalars ends anywhere in its second row; the run that was started after it goes on behind that."""
    with RunLog(config.run_dir) as log:
        for step in (1, 2):
            log.log("grpo", step, {"reward/total": 0.1})
    scalars = config.run_dir / "scalars.jsonl"
    rows = scalars.read_bytes().splitlines(keepends=True)
    scalars.write_bytes(rows[0] + rows[1][:cut] + rows[1].replace(b'"step": 2', b'"step": 3') * (cut % 2))
    fail(config)
    [folder] = config.run_dir.glob("post-mortem-*Z")
    assert not (folder / "incomplete.txt").exists()
    steps = {json.loads(line)["step"] for line in (folder / "scalars.jsonl").read_text().splitlines()}
    assert 1 in steps and steps <= {1, 2, 3}


def test_a_stage_keeps_its_configuration_and_the_last_one_is_the_folder_s(config: Config) -> None:
    with kept_in_folder(config, "sft"):
        pass
    later = config.model_copy(update={"seed": 7})
    with kept_in_folder(later, "grpo"):
        pass
    seeds = {path.name: load_config(path).seed for path in config.run_dir.glob("config*.yaml")}
    assert seeds == {"config.sft.yaml": 0, "config.grpo.yaml": 7, "config.yaml": 7}
    assert not list(config.run_dir.glob("post-mortem-*"))


def test_the_command_line_says_where_the_folder_is(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    def stage() -> None:
        with kept_in_folder(config, "eval"):
            raise FileNotFoundError("data is missing; build it")

    with pytest.raises(SystemExit, match="1"):
        guarded(stage)
    lines = capsys.readouterr().err.splitlines()
    [folder] = config.run_dir.glob("post-mortem-*")
    assert lines == [f"post-mortem: {folder}", "error: data is missing; build it"], "the last line is the reason"
