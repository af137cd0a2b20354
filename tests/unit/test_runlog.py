"""The run log: what is written can be read, and a value that is not finite never gets in."""

import importlib
import json
import math
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vsr1.runs.scalars import RunLog, ScalarTail, TrackingError, read_scalars


def test_scalars_come_back_from_both_files(tmp_path: Path) -> None:
    with RunLog(tmp_path / "run", clock=lambda: 5.0) as log:
        log.log("sft", 1, {"loss": 2.0, "learning_rate": 1e-5})
        log.log("grpo", 1, {"reward": -0.5})
    rows = read_scalars(tmp_path / "run" / "scalars.jsonl")
    assert rows[0] == {"stage": "sft", "step": 1, "name": "loss", "value": 2.0, "time": 5.0}
    assert [(row["stage"], row["name"]) for row in rows] == [
        ("sft", "loss"),
        ("sft", "learning_rate"),
        ("grpo", "reward"),
    ]
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in board.Scalars("grpo/reward")] == [(1, -0.5)]


def test_lines_are_readable_before_close(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        log.log("sft", 1, {"loss": 2.0})
        assert len(read_scalars(tmp_path / "scalars.jsonl")) == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_value_that_is_not_finite_is_named_and_nothing_is_written(tmp_path: Path, value: float) -> None:
    with RunLog(tmp_path) as log, pytest.raises(ValueError, match=r"grpo/kl is -?(nan|inf) at step 7"):
        log.log("grpo", 7, {"loss": 1.0, "kl": value})
    assert read_scalars(tmp_path / "scalars.jsonl") == []


def test_resuming_appends_after_cutting_a_torn_line(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        log.log("sft", 1, {"loss": 2.0})
    with (tmp_path / "scalars.jsonl").open("a") as lines:
        lines.write('{"stage": "sft", "st')
    assert [row["step"] for row in read_scalars(tmp_path / "scalars.jsonl")] == [1], "a killed run can be read"
    with RunLog(tmp_path) as log:
        log.log("sft", 2, {"loss": 1.0})
    assert [row["step"] for row in read_scalars(tmp_path / "scalars.jsonl")] == [1, 2]


def test_tensorboard_forgets_what_a_dead_run_logged_past_the_step_that_the_next_goes_on_from(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        for step in range(1, 7):
            log.log("sft", step, {"loss": float(step)})
        log.log("sft_val", 5, {"loss": 5.0})
        log.log("grpo", 6, {"reward": 1.0})
    time.sleep(1.1)  # files are read in the order of their names, which begin with the second of their start
    with RunLog(tmp_path, after={"sft": 3, "sft_val": 3}) as log:
        log.log("sft", 4, {"loss": 40.0})
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()

    def points(name: str) -> list[tuple[int, float]]:
        return [(event.step, event.value) for event in board.Scalars(name)]

    assert points("sft/loss") == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]
    assert points("grpo/reward") == [(6, 1.0)], "of a stage that ended"
    assert "sft_val/loss" not in board.Tags()["scalars"] or points("sft_val/loss") == []
    assert [row["step"] for row in read_scalars(tmp_path / "scalars.jsonl")][-1] == 4, "no line is lost or doubled"
    assert len(read_scalars(tmp_path / "scalars.jsonl")) == 9
    time.sleep(1.1)
    with RunLog(tmp_path, after={"sft": 6}):
        pass
    assert EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("sft/loss")[-1].value == 40.0


def test_reading_names_the_bad_line(tmp_path: Path) -> None:
    path = tmp_path / "scalars.jsonl"
    with pytest.raises(FileNotFoundError):
        read_scalars(path)
    path.write_text('{"stage": "sft", "step": 1, "name": "loss", "value": 1.0, "time": 0.0}\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"scalars\.jsonl:2: expected"):
        read_scalars(path)
    path.write_text("loss 1.0\n")
    with pytest.raises(ValueError, match=r"scalars\.jsonl:1: not a JSON line"):
        read_scalars(path)


def _write(path: Path, text: bytes) -> None:
    with path.open("ab") as lines:
        lines.write(text)


def test_a_tail_gives_each_row_once_when_its_line_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "scalars.jsonl"
    lines = [
        json.dumps({"stage": "sft", "step": step, "name": "l\u00f6ss", "value": 1.0, "time": 0.0}, ensure_ascii=False)
        for step in (1, 2, 3)
    ]
    first, second, third = (f"{line}\n".encode() for line in lines)
    tail = ScalarTail(path)
    _write(path, first + second[:40])
    assert [row["step"] for row in tail.read()] == [1]
    assert tail.read() == []
    with RunLog(tmp_path) as log:  # cuts the torn line, which another run left
        assert tail.read() == []
        log.log("sft", 2, {"loss": 1.0})
        assert [row["step"] for row in tail.read()] == [2]
    for at in range(len(third)):  # as it is written, byte by byte
        assert tail.read() == []
        _write(path, third[at : at + 1])
    assert [row["step"] for row in tail.read()] == [3]
    _write(path, b"half\n")
    with pytest.raises(ValueError, match=r"scalars\.jsonl:4: not a JSON line"):
        tail.read()


FAKE = """
import os
calls = []
class Error(Exception):
    pass
class Run:
    offline = os.environ.get("WANDB_MODE") == "offline"
    def __getattr__(self, name):
        return lambda *args, **options: calls.append((name, args, options))
def init(**options):
    if "no key" in options["project"]:
        raise Error("api_key not configured (no-tty)")
    calls.append(("init", (), options))
    return Run()
"""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was asked of Weights & Biases: name, arguments and options of each call."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "wandb.py").write_text(FAKE)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.delenv("WANDB_DIR", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return importlib.import_module("wandb").calls


def _ids(calls: list[Any]) -> list[str]:
    return [options["id"] for name, _, options in calls if name == "init"]


def test_what_is_logged_goes_to_weights_and_biases_with_the_step_of_its_stage(tmp_path: Path, calls: list[Any]) -> None:
    with RunLog(tmp_path / "run", wandb="films") as log:
        log.log("grpo", 3, {"loss": 2.0})
    [(_, _, options), *others] = calls
    assert (options["project"], options["name"], options["resume"]) == ("films", "run", "allow")
    assert options["dir"] == str(tmp_path / "run")
    assert others == [
        ("define_metric", ("grpo/*",), {"step_metric": "grpo/step"}),
        ("log", ({"grpo/loss": 2.0, "grpo/step": 3},), {}),
        ("finish", (), {}),
    ]


def test_a_tracked_run_that_goes_on_keeps_its_id_and_sends_each_step_once(tmp_path: Path, calls: list[Any]) -> None:
    with RunLog(tmp_path / "run", wandb="films") as log:
        for step in range(1, 7):
            log.log("sft", step, {"loss": 1.0})
    with RunLog(tmp_path / "run", wandb="films", after={"sft": 4}) as log:
        for step in range(5, 9):
            log.log("sft", step, {"loss": 1.0})
        log.log("grpo", 1, {"loss": 1.0})
    sent = [args[0] for name, args, _ in calls if name == "log"]
    assert [values["sft/step"] for values in sent if "sft/step" in values] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [values["grpo/step"] for values in sent if "grpo/step" in values] == [1]
    first, second = _ids(calls)
    assert first == second
    with RunLog(tmp_path / "run2", wandb="films"):
        pass
    shutil.rmtree(tmp_path / "run")
    with RunLog(tmp_path / "run", wandb="films"):  # another run in a folder of the same name
        pass
    assert len(set(_ids(calls))) == 3


def test_parts_of_a_tracked_run_without_a_network_do_not_take_each_others_place(
    tmp_path: Path, calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "mine"))
    sys.modules["wandb"].Run.offline = True  # type: ignore[attr-defined]
    for step in (1, 2):
        with RunLog(tmp_path / "run", wandb="films") as log:
            log.log("sft", step, {"loss": 1.0})
    assert len(set(_ids(calls))) == 2
    assert {options["dir"] for name, _, options in calls if name == "init"} == {str(tmp_path / "mine")}


def test_a_run_that_weights_and_biases_refuses_is_told_with_the_ways_out(tmp_path: Path, calls: list[Any]) -> None:
    with pytest.raises(TrackingError, match=r"tracking\.wandb=no key.*api_key not configured.*WANDB_MODE=offline"):
        RunLog(tmp_path / "run", wandb="no key")


def test_a_training_outlives_its_tracking(
    tmp_path: Path, calls: list[Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The process that sends has been killed: each call of W&B ends in an error of its connection."""
    with RunLog(tmp_path / "run", wandb="films") as log:
        log.log("sft", 1, {"loss": 1.0})

        def gone(*_: Any, **__: Any) -> None:
            raise ConnectionResetError("Connection lost")

        for name in ("log", "define_metric", "finish"):
            monkeypatch.setattr(sys.modules["wandb"].Run, name, gone, raising=False)
        for step in (2, 3):
            log.log("sft", step, {"loss": 1.0})
    assert [row["step"] for row in read_scalars(tmp_path / "run" / "scalars.jsonl")] == [1, 2, 3]
    assert [record.message for record in caplog.records] == [
        "Weights & Biases is gone (Connection lost); the training goes on, its scalars are in scalars.jsonl"
    ]
