"""What `python -m bench clips` measures holds for the toy corpus: a fifth of the bytes, nearly the same pixels."""

from bench.clips import bench_clips


def test_compact_toy_clips_are_a_fifth_or_less_and_nearly_equal() -> None:
    found = bench_clips(4, None, 1.0, 64)["toy"]
    assert found["clips"] == 4 and found["frames"] > 20
    assert found["ratio"] == round(found["npy_bytes"] / found["compact_bytes"], 2) >= 5
    assert found["psnr_mean_db"] >= found["psnr_min_db"] > 40
    assert 0 < found["max_abs_difference"] < 40
