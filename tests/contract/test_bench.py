"""Benchmarks run here and print one line of JSON."""

import json
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("arguments", "figure"),
    [
        (["weights", "--rounds", "1"], "push_s"),
        (["latents", "--samples", "4", "--group", "2", "--words", "4", "--rounds", "1"], "engine_ms"),
    ],
)
def test_a_benchmark_prints_one_line_of_json(arguments: list[str], figure: str) -> None:
    command = [sys.executable, "-m", "bench", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    [line] = done.stdout.splitlines()
    found = json.loads(line)
    assert found["bench"] == arguments[0] and found[figure] > 0
    assert found.get("left_out_is_caught", True)
