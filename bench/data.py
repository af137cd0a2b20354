"""Measures dataset construction: seconds and rows of each step, and memory at one size of corpus and at twice that.

Memory is the proportional set size of this process and all that it started, Ray included, sampled while the build runs;
a page that processes share counts once.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import psutil
import ray

from pipelines.data.build import build_dataset
from pipelines.stage.connection import connect
from vsr1.config import Config
from vsr1.formats.dataset import DatasetFolder
from vsr1.toy.corpus import write_toy_corpus

SAMPLE_EVERY_S = 0.5
TEST_SHARE = 5  # one video in so many


def bench_data(videos: int, side: int, config: Config) -> dict[str, Any]:
    """Build toy corpora of `videos` and twice as many, and each a second time, with everything in place.

    Args:
        side: pixels of a frame's side; above the 64 of the toy films these are enlarged.
        config: of the build; `data.root` is replaced.
    """
    return {"side": side, "corpora": [_measured(count, side, config) for count in (videos, 2 * videos)]}


def _measured(videos: int, side: int, config: Config) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "data"
        test = videos // TEST_SHARE
        write_toy_corpus(root, videos - test, test, config.seed)
        for split in ("train", "test"):
            for path in DatasetFolder(root).raw_videos(split).iterdir():
                _enlarge(path, side)
        mine = config.model_copy(update={"data": config.data.model_copy(update={"root": root})})
        connect(mine)
        with _peak_memory() as peak:
            report = build_dataset(mine)
        again = build_dataset(mine)
        ray.shutdown()
        clips = sum(path.stat().st_size for path in root.rglob("video_npy_with_meta/*.npy"))
    steps: dict[str, dict[str, float]] = {}
    for step in report.steps:
        total = steps.setdefault(step.name, {"seconds": 0.0, "rows": 0})
        total["seconds"] = round(total["seconds"] + step.seconds, 2)
        total["rows"] += step.rows
    return {
        "videos": videos,
        "seconds": round(sum(step.seconds for step in report.steps), 1),
        "steps": steps,
        "clips_per_s": round(videos / steps["clips"]["seconds"], 1),
        "clips_mib": round(clips / 2**20),
        "peak_memory_mib": {name: round(size / 2**20) for name, size in peak.items()},
        "again_seconds": round(sum(step.seconds for step in again.steps), 1),
        "again_built": sum(step.status == "built" for step in again.steps),
    }


def _enlarge(path: Path, side: int) -> None:
    source = path.with_suffix(".small")
    path.rename(source)
    with av.open(str(source)) as small, av.open(str(path), "w", format="mp4") as large:
        given = small.streams.video[0]
        stream = large.add_stream("libx264", rate=given.average_rate, options={"crf": "16", "preset": "ultrafast"})
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        for frame in small.decode(given):
            large.mux(stream.encode(frame.reformat(side, side)))
        large.mux(stream.encode())
    source.unlink()


@contextmanager
def _peak_memory() -> Iterator[dict[str, int]]:
    """Peaks in bytes while the block runs: all processes together, the largest one, and this one."""
    peak = {"all": 0, "largest_process": 0, "driver": 0}
    over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(peak, over))
    watcher.start()
    try:
        yield peak
    finally:
        over.set()
        watcher.join()


def _watch(peak: dict[str, int], over: threading.Event) -> None:
    me = psutil.Process()
    while not over.wait(SAMPLE_EVERY_S):
        sizes = []
        for process in [me, *me.children(recursive=True)]:
            try:
                sizes.append(process.memory_full_info().pss)
            except psutil.NoSuchProcess:
                continue
        now = {"all": sum(sizes), "largest_process": max(sizes), "driver": sizes[0]}
        for name, size in now.items():
            peak[name] = max(peak[name], size)
