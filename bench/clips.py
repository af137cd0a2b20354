"""What compact clip storage saves and what it costs: bytes, exactness and seconds, npy against compact.

Every clip is written and read by the functions of the data build, so the figures are those of a build.
"""

from __future__ import annotations

import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.data.manifest import VIDEO_EXTENSIONS
from pipelines.machine.resources import cores
from vsr1.formats.dataset import DatasetFolder
from vsr1.settings.data import DataConfig
from vsr1.toy.corpus import write_toy_corpus
from vsr1.video.clips import ClipFolder, Storage, clip_file, write_clip, write_meta
from vsr1.video.decode import SampledVideo, VideoError, sample_video

PEAK = 255
STORAGES: tuple[Storage, ...] = ("npy", "compact")


def bench_clips(toy_videos: int, videos: Path | None, fps: float, max_frames: int) -> dict[str, Any]:
    """Figures of a toy corpus that is rendered for this, and of the video files of a folder where one is given.

    Raises:
        VideoError: a file of the folder gives no frames, or it has no video file.
    """
    data = DataConfig(sample_fps=fps, max_frames=max_frames)
    found: dict[str, Any] = {"bench": "clips", "cpu": platform.machine(), "cores": cores(), "sample_fps": fps}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_toy_corpus(root / "toy", toy_videos, 2, 0)
        found["toy"] = _measured(DatasetFolder(root / "toy").raw_videos("train"), root / "toy_clips", data)
        if videos is not None:
            found["videos"] = _measured(videos, root / "video_clips", data)
    return found


def _measured(videos: Path, out: Path, data: DataConfig) -> dict[str, Any]:
    """Figures over all videos of a folder; PSNR in dB over the three channels of a frame."""
    files = [path for path in sorted(videos.rglob("*")) if path.suffix.lower() in VIDEO_EXTENSIONS]
    if not files:
        raise VideoError(videos, f"the folder has no video file ({', '.join(VIDEO_EXTENSIONS)})")
    size, wrote, read = (dict.fromkeys(STORAGES, 0.0) for _ in range(3))
    psnr: list[float] = []
    largest = frames = 0
    for number, path in enumerate(files):
        sampled = sample_video(path, fps=data.sample_fps, max_frames=data.max_frames, max_pixels=data.max_pixels)
        for storage in STORAGES:
            began = time.perf_counter()
            stored = _write(out / storage / str(number), path, sampled, data, storage)
            written = time.perf_counter()
            clip = ClipFolder(out / storage / str(number)).read("clip")
            read[storage] += time.perf_counter() - written
            wrote[storage] += written - began
            size[storage] += stored.stat().st_size
        errors = np.abs(clip.frames.astype(np.int16) - sampled.frames)
        psnr += [_psnr(error) for error in errors]
        largest = max(largest, int(errors.max()))
        frames += len(errors)
    return {
        "clips": len(files),
        "frames": frames,
        **{f"{storage}_bytes": int(size[storage]) for storage in STORAGES},
        "ratio": round(size["npy"] / size["compact"], 2),
        "psnr_mean_db": round(float(np.mean(psnr)), 2),
        "psnr_min_db": round(min(psnr), 2),
        "max_abs_difference": largest,
        **{f"{storage}_write_s_per_clip": round(wrote[storage] / len(files), 4) for storage in STORAGES},
        **{f"{storage}_read_s_per_clip": round(read[storage] / len(files), 4) for storage in STORAGES},
    }


def _write(folder: Path, source: Path, sampled: SampledVideo, data: DataConfig, storage: Storage) -> Path:
    row = write_clip(
        folder, "clip", sampled, source=source, target_fps=data.sample_fps, max_frames=data.max_frames, storage=storage
    )
    write_meta(folder, [row])
    return clip_file(folder, "clip", row)


def _psnr(error: np.ndarray) -> float:
    """dB; a frame without error counts with the error of half a level in one value, so that means stay finite."""
    squared = np.square(error, dtype=np.float64)
    return float(10 * np.log10(PEAK**2 / max(squared.mean(), 0.25 / squared.size)))
