"""The heavy parts that the doctor starts really run here, each in its own process."""

import sys

import pytest

from pipelines.machine.probes import run_selftest


@pytest.mark.parametrize(("selftest", "words"), [("ray", "ran a task"), ("deepspeed", "step"), ("vllm", "imported")])
def test_the_selftest_passes(selftest, words, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    ok, found = run_selftest([sys.executable, "-m", "pipelines.machine.selftest", selftest])
    assert ok, found
    assert words in found
    assert not list(tmp_path.iterdir()), "an operator was compiled"


def test_an_unknown_selftest_is_refused():
    ok, found = run_selftest([sys.executable, "-m", "pipelines.machine.selftest", "other"])
    assert not ok and "ray|deepspeed|vllm" in found
