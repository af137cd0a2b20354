"""A small run of the fuzz: every file is a clip or a named failure."""

import json
import random
import subprocess
import sys

from bench.fuzz import changed


def test_changed_videos_are_clips_or_named_failures() -> None:
    """In a process of its own: it forks, and a fork of one that other tests have left threads in may hang."""
    command = [sys.executable, "-m", "bench", "fuzz", "--files", "40", "--seed", "7"]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert printed.returncode == 0, printed.stderr
    result = json.loads(printed.stdout)
    assert sum(result["outcomes"].values()) == 40
    assert set(result["outcomes"]) <= {"clip", "not_a_video", "too_many_pixels", "too_many_frames", "too_long", "limit"}
    assert {"clip", "not_a_video"} <= set(result["outcomes"])
    assert result["examples"] == {} and result["peak_memory_mib"] < 1024


def test_the_same_seed_changes_the_same_bytes() -> None:
    content = bytes(range(256)) * 20
    variants = {changed(content, random.Random(seed)) for seed in range(50)}
    assert len(variants) > 45 and changed(content, random.Random(3)) == changed(content, random.Random(3))
