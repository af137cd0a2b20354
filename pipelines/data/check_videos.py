"""Checks the source videos of a dataset before it is built: each is there once, decodes, and is as long as annotated.

Every packet of a video is read and one frame decoded, in `data.decode_workers` processes; a video whose pictures break
is found by the build.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import active_children, get_context
from pathlib import Path

from rich.table import Table

from pipelines.data.manifest import Announce, BuildError, Manifest, Video, find_videos
from vsr1.config import Config
from vsr1.formats.dataset import DatasetFolder
from vsr1.video.container import VideoError, printable
from vsr1.video.decode import differs, probe_video
from vsr1.video.faults import work_on

LISTED_UNUSED = 20


@dataclass
class VideosCheck:
    """What is wrong with the videos of a split, by video id; `unused_files` are those that no annotation names, of any
    split where all share a folder.

    `mismatched` holds the annotated and the file's seconds.
    """

    split: str
    folder: str
    videos: int = 0
    missing: list[str] = field(default_factory=list)
    twice: dict[str, list[str]] = field(default_factory=dict)
    undecodable: dict[str, str] = field(default_factory=dict)
    mismatched: dict[str, tuple[float, float]] = field(default_factory=dict)
    unused: int = 0
    unused_files: list[str] = field(default_factory=list)

    @property
    def wrong(self) -> int:
        """Return how many videos have a defect."""
        return len(self.missing) + len(self.twice) + len(self.undecodable) + len(self.mismatched)

    def lines(self) -> list[str]:
        """Return one line a defect, and one each for the first files that nobody names."""
        missing = [f"{self.split}: {name}: no video file in {self.folder}" for name in self.missing]
        if self.missing and not Path(self.folder).is_dir():
            missing = [
                f"{self.split}: the folder {self.folder} does not exist; put the videos there or set data.videos"
            ]
        more = self.unused - LISTED_UNUSED
        return [
            *missing,
            *(f"{self.split}: {name}: more than one file: {', '.join(paths)}" for name, paths in self.twice.items()),
            *(f"{self.split}: {name}: {reason}" for name, reason in self.undecodable.items()),
            *(
                f"{self.split}: {name}: annotated as {annotated:.1f} s, the file has {seconds:.1f} s"
                for name, (annotated, seconds) in self.mismatched.items()
            ),
            *(f"{self.split}: {path} is unused: no annotation names it" for path in self.unused_files[:LISTED_UNUSED]),
            *([f"{self.split}: and {more} more unused files; --json lists them all"] if more > 0 else []),
        ]


def check_videos(config: Config, progress: Announce | None = None) -> list[VideosCheck]:
    """Check every split of `config.data.splits` and write nothing.

    Raises:
        AnnotationError: missing or faulty annotations.
        BuildError: a folder that does not exist, a split that is only searched has no video files, or a process that
            opened videos died.
    """
    data = config.data
    manifests = [find_videos(DatasetFolder(data.root), split, data) for split in data.splits]
    everywhere = {path for manifest in manifests for video in manifest.videos.values() for path in video.files}
    # Spawned, because a fork of a process with threads can hang.
    with ProcessPoolExecutor(data.decode_workers, mp_context=get_context("spawn")) as pool, _ended_at_a_fault():
        checks = []
        for manifest in manifests:
            check = _check_names(manifest, everywhere)
            single = [video for video in manifest.videos.values() if len(video.files) == 1]
            if progress:
                progress(f"{manifest.split}: opening {len(single)} videos")
            with _no_interrupt():
                # Not by `map`, whose results would be cancelled where the pool is ended, which the pool cannot stand.
                results = [pool.submit(_probe, video.files[0]) for video in single]
            for video, probed in zip(single, _results(results, single), strict=True):
                if isinstance(probed, str):
                    check.undecodable[video.video_id] = probed
                elif video.duration and differs(video.duration, probed):
                    check.mismatched[video.video_id] = (video.duration, probed)
            checks.append(check)
    return checks


def check_table(checks: list[VideosCheck]) -> Table:
    """Return the counts, one row a split."""
    table = Table("split", "videos", "missing", "two files", "undecodable", "other length", "unused files")
    for check in checks:
        counts = (check.videos, len(check.missing), len(check.twice), len(check.undecodable), len(check.mismatched))
        table.add_row(check.split, *map(str, counts), str(check.unused))
    return table


@contextmanager
def _no_interrupt() -> Iterator[None]:
    """Keep Ctrl-C from the processes that are started in the block, which would each print a traceback."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


@contextmanager
def _ended_at_a_fault() -> Iterator[None]:
    """End the processes of a pool where the block raises, or all that the pool has not begun would be waited for."""
    try:
        yield
    except BaseException:
        for process in active_children():
            process.kill()
        raise


def _check_names(manifest: Manifest, named: set[Path]) -> VideosCheck:
    """Return what the names of the files tell."""
    files = {name: [printable(path) for path in video.files] for name, video in manifest.videos.items()}
    unused = [printable(path) for path in manifest.files if path not in named]
    return VideosCheck(
        manifest.split,
        str(manifest.place),
        videos=len(files),
        missing=[name for name, paths in files.items() if not paths],
        twice={name: paths for name, paths in files.items() if len(paths) > 1},
        unused=len(unused),
        unused_files=unused,
    )


def _results(results: list[Future[float | str]], videos: list[Video]) -> Iterator[float | str]:
    """Yield the results of the pool; raise a `BuildError` where the machine is at fault."""
    for result, video in zip(results, videos, strict=True):
        try:
            yield result.result()
        except BrokenProcessPool as error:
            raise BuildError(
                f"a process that opened videos died, at {video.video_id!r} or one of those after it; try them alone, "
                "and see whether memory is short"
            ) from error
        except (OSError, MemoryError) as error:
            raise BuildError(f"this machine cannot open videos now: {error or 'it is out of memory'}") from error


def _probe(path: Path) -> float | str:
    """Return, in a process of the pool, a video's seconds, or why it cannot be used."""
    try:
        with work_on(path):
            return probe_video(path)
    except VideoError as error:
        return error.reason
