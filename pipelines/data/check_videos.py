"""Checks the source videos of a dataset before it is built: each is there once, decodes, and is as long as annotated.

Only the first frame of a video is decoded, in `data.decode_workers` processes; a video that breaks later is found by
the build.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

from rich.table import Table

from pipelines.data.manifest import Announce, Manifest, find_videos, id_of
from vsr1.config import Config
from vsr1.formats.dataset import DatasetFolder
from vsr1.video.decode import VideoError, probe_video

TOLERANCE_SECONDS = 1.0
TOLERANCE_SHARE = 0.02  # of the annotated duration, where that is more


@dataclass
class VideosCheck:
    """What is wrong with the videos of a split, by video id; `unused` counts files that no annotation names, of
    any split where all share a folder.

    `mismatched` holds the annotated and the container's seconds.
    """

    split: str
    folder: str
    videos: int = 0
    missing: list[str] = field(default_factory=list)
    twice: dict[str, list[str]] = field(default_factory=dict)
    undecodable: dict[str, str] = field(default_factory=dict)
    mismatched: dict[str, tuple[float, float]] = field(default_factory=dict)
    unused: int = 0

    @property
    def wrong(self) -> int:
        """Return how many videos have a defect."""
        return len(self.missing) + len(self.twice) + len(self.undecodable) + len(self.mismatched)

    def lines(self) -> list[str]:
        """Return one line a defect."""
        return [
            *(f"{self.split}: {name}: no video file in {self.folder}" for name in self.missing),
            *(f"{self.split}: {name}: more than one file: {', '.join(paths)}" for name, paths in self.twice.items()),
            *(f"{self.split}: {name}: {reason}" for name, reason in self.undecodable.items()),
            *(
                f"{self.split}: {name}: annotated as {annotated:.1f} s, the file has {stated:.1f} s"
                for name, (annotated, stated) in self.mismatched.items()
            ),
        ]


def check_videos(config: Config, progress: Announce | None = None) -> list[VideosCheck]:
    """Check every split of `config.data.splits` and write nothing.

    Raises:
        AnnotationError: missing or faulty annotations.
        BuildError: a split that is only searched has no video files.
    """
    data = config.data
    manifests = [find_videos(DatasetFolder(data.root), split, data) for split in data.splits]
    everywhere = {id_of(name) for manifest in manifests for name in manifest.videos}
    # Spawned, because a fork of a process with threads can hang.
    with ProcessPoolExecutor(data.decode_workers, mp_context=get_context("spawn")) as pool:
        checks = []
        for manifest in manifests:
            # A folder that all splits share has files of the others.
            check = _check_names(manifest, everywhere if data.videos else {id_of(name) for name in manifest.videos})
            single = [video for video in manifest.videos.values() if len(video.files) == 1]
            if progress:
                progress(f"{manifest.split}: opening {len(single)} videos")
            for video, probed in zip(single, pool.map(_probe, [v.files[0] for v in single], chunksize=8), strict=True):
                if isinstance(probed, str):
                    check.undecodable[video.video_id] = probed
                elif video.duration and probed is not None and _differ(video.duration, probed):
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


def _check_names(manifest: Manifest, named: set[str]) -> VideosCheck:
    """Return what the names of the files tell."""
    files = {name: [str(path) for path in video.files] for name, video in manifest.videos.items()}
    return VideosCheck(
        manifest.split,
        str(manifest.place),
        videos=len(files),
        missing=[name for name, paths in files.items() if not paths],
        twice={name: paths for name, paths in files.items() if len(paths) > 1},
        unused=sum(len(paths) for name, paths in manifest.files.items() if name not in named),
    )


def _probe(path: Path) -> float | str | None:
    """Return, in a process of the pool, seconds, None where none are stated, or why the video cannot be used."""
    try:
        return probe_video(path)
    except VideoError as error:
        return error.reason


def _differ(annotated: float, stated: float) -> bool:
    return abs(annotated - stated) > max(TOLERANCE_SECONDS, TOLERANCE_SHARE * annotated)
