"""A small run of the fuzz: every file is a clip or a named failure."""

import random

from bench.fuzz import bench_fuzz, changed


def test_changed_videos_are_clips_or_named_failures() -> None:
    result = bench_fuzz(40, 7)
    assert sum(result["outcomes"].values()) == 40
    assert set(result["outcomes"]) <= {"clip", "not_a_video", "too_many_pixels", "too_many_frames", "too_long", "limit"}
    assert {"clip", "not_a_video"} <= set(result["outcomes"])
    assert result["examples"] == {} and result["peak_memory_mib"] < 1024


def test_the_same_seed_changes_the_same_bytes() -> None:
    content = bytes(range(256)) * 20
    variants = {changed(content, random.Random(seed)) for seed in range(50)}
    assert len(variants) > 45 and changed(content, random.Random(3)) == changed(content, random.Random(3))
