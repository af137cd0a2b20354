"""Compact clips of the toy corpus: a fifth of the bytes of raw ones or less, and nearly the same pixels."""

from pathlib import Path

import numpy as np

from vsr1.toy.render import encode_mp4
from vsr1.toy.world import make_corpus
from vsr1.video.clips import ClipFolder, Storage, clip_file, write_clip, write_meta
from vsr1.video.decode import SampledVideo, sample_video


def size(folder: Path, sampled: SampledVideo, storage: Storage) -> int:
    row = write_clip(folder, "a", sampled, source=Path("a.mp4"), target_fps=1.0, max_frames=64, storage=storage)
    write_meta(folder, [row])
    return clip_file(folder, "a", row).stat().st_size


def test_compact_toy_clips_are_a_fifth_or_less_and_nearly_equal(tmp_path: Path) -> None:
    raw = compact = 0
    for example in make_corpus("test", 4, 0):
        path = tmp_path / f"{example.film.video_id}.mp4"
        encode_mp4(example.film, path)
        sampled = sample_video(path, fps=1.0, max_frames=64, max_pixels=200_704)
        raw += size(path.with_suffix(".raw"), sampled, "npy")
        compact += size(path.with_suffix(".compact"), sampled, "compact")
        error = ClipFolder(path.with_suffix(".compact")).read("a").frames.astype(int) - sampled.frames
        assert 0 < np.abs(error).max() < 40
        assert 10 * np.log10(255**2 / np.square(error).mean(axis=(1, 2, 3)).max()) > 40, "PSNR of the worst frame, dB"
    assert raw > 5 * compact
