"""The measurement of tools, tiny, on real actors: what a group asks for is made once, whoever asks and whenever."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.timeout(400)
def test_no_call_is_made_twice_with_free_and_busy_pools() -> None:
    sizes = ["--prompts", "2", "--group", "4", "--reply-s", "0.05", "--tool-s", "0.05", "--rounds", "1"]
    command = [sys.executable, "-m", "bench", "tools", *sizes]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=360)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["calls_made_twice"] == 0
    assert figures["calls_asked"] > 2 * 2 * 2 * 4 and figures["calls_made"] > 0
    assert {"without_per_s", "free_per_s", "busy_per_s", "free_ratio", "busy_ratio"} <= figures.keys()
