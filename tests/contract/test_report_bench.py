"""The benchmark of the report page, at its smallest."""

import json
import os
import subprocess
import sys

import pytest

from bench.report import BrowserError, find_browser


def test_it_prints_one_line_of_json() -> None:
    try:
        find_browser()
    except BrowserError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    command = [sys.executable, "-m", "bench", "report", "--trajectories", "24", "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    [line] = done.stdout.splitlines()
    found = json.loads(line)
    assert (found["bench"], found["trajectories"], found["videos"]) == ("report", 24, 24)
    for figure in ("megabytes", "build_seconds", "open_seconds", "loaded_seconds", "filter_ms", "open_trajectory_ms"):
        assert found[figure] > 0
