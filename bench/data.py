"""Construction of a dataset: seconds and rows of each step, and memory at one size of corpus and at twice that.

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
SPLITS = ("train", "test")
TEST_SHARE = 5  # one video in so many


def bench_data(videos: int, side: int, config: Config) -> dict[str, Any]:
    """Build toy corpora of `videos` and twice as many, and each a second time, with everything in place.

    Args:
        videos: of the smaller corpus, training and test split together.
        side: pixels of a frame's side; above the 64 of the toy films these are enlarged.
        config: of the build; `data.root` and `data.splits` are replaced.
    """
    return {"side": side, "corpora": [_build(count, side, config) for count in (videos, 2 * videos)]}


def _build(videos: int, side: int, config: Config) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "data"
        test = videos // TEST_SHARE
        write_toy_corpus(root, videos - test, test, config.seed)
        for split in SPLITS:
            for path in DatasetFolder(root).raw_videos(split).iterdir():
                _enlarge(path, side)
        data = config.data.model_copy(update={"root": root, "splits": SPLITS})
        settings = config.model_copy(update={"data": data})
        connect(settings)
        with _peak_memory() as peak:
            report = build_dataset(settings)
        again = build_dataset(settings)
        ray.shutdown()
        clips = sum(path.stat().st_size for path in root.rglob("video_npy_with_meta/*.npy"))
    steps: dict[str, dict[str, float]] = {}
    for step in report.steps:
        total = steps.setdefault(step.name, {"seconds": 0.0, "rows": 0})
        total["seconds"] += step.seconds
        total["rows"] += step.rows
    return {
        "videos": videos,
        "seconds": sum(step.seconds for step in report.steps),
        "steps": steps,
        "clips_per_s": videos / steps["clips"]["seconds"],
        "clips_mib": clips / 2**20,
        "peak_memory_mib": {name: size / 2**20 for name, size in peak.items()},
        "again_seconds": sum(step.seconds for step in again.steps),
        "again_built": sum(step.status == "built" for step in again.steps),
    }


def _enlarge(path: Path, side: int) -> None:
    source = path.with_suffix(".small")
    path.rename(source)
    with av.open(str(source)) as small, av.open(str(path), "w", format="mp4") as large:
        video = small.streams.video[0]
        stream = large.add_stream("libx264", rate=video.average_rate, options={"crf": "16", "preset": "ultrafast"})
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        for frame in small.decode(video):
            large.mux(stream.encode(frame.reformat(side, side)))
        large.mux(stream.encode())
    source.unlink()


@contextmanager
def _peak_memory() -> Iterator[dict[str, int]]:
    """Yield a dict that holds, after the block, the peaks in bytes: all processes together, the largest, this one."""
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
    driver = psutil.Process()
    while not over.wait(SAMPLE_EVERY_S):
        sizes = []
        for process in [driver, *driver.children(recursive=True)]:
            try:
                sizes.append(process.memory_full_info().pss)
            except psutil.NoSuchProcess:
                continue
        sample = {"all": sum(sizes), "largest_process": max(sizes), "driver": sizes[0]}
        peak.update({name: max(peak[name], size) for name, size in sample.items()})
