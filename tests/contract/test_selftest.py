"""The heavy parts that the doctor starts really run here, each in its own process."""

import sys
from pathlib import Path

import pytest

from pipelines.machine.doctor import run_command, selftest
from pipelines.machine.resources import MachineError
from vsr1.config import Config


@pytest.mark.parametrize(("part", "words"), [("ray", "ran a task"), ("deepspeed", "step"), ("vllm", "imported")])
def test_the_selftest_passes(part: str, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert words in selftest(part, Config())
    assert not list(tmp_path.iterdir()), "an operator was compiled"


def test_an_unknown_selftest_is_refused() -> None:
    command = [sys.executable, "-m", "pipelines.machine.selftest", "other"]
    with pytest.raises(MachineError, match=r"invalid choice: 'other' \(choose from .?ray"):
        run_command(command, "")
