"""Checks the source videos of a dataset before it is built: each is there once, decodes, and is as long as annotated.

Only the first frame of a video is decoded, in `data.decode_workers` processes; a video that breaks later is found by
the build.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.table import Table

from pipelines.data.manifest import BuildError, id_of, video_files, videos_folder
from vsr1.config import Config
from vsr1.formats.annotations import read_annotations
from vsr1.formats.dataset import DatasetFolder
from vsr1.video.decode import VideoError, probe_video

TOLERANCE_SECONDS = 1.0
TOLERANCE_SHARE = 0.02  # of the annotated duration, where that is more


@dataclass
class SplitCheck:
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
        """Videos with a defect."""
        return len(self.missing) + len(self.twice) + len(self.undecodable) + len(self.mismatched)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        """One line a defect."""
        return [
            *(f"{self.split}: {name}: no video file in {self.folder}" for name in self.missing),
            *(f"{self.split}: {name}: more than one file: {', '.join(paths)}" for name, paths in self.twice.items()),
            *(f"{self.split}: {name}: {reason}" for name, reason in self.undecodable.items()),
            *(
                f"{self.split}: {name}: annotated as {annotated:.1f} s, the file has {found:.1f} s"
                for name, (annotated, found) in self.mismatched.items()
            ),
        ]


def check_dataset(config: Config, progress: Callable[[str], None] | None = None) -> list[SplitCheck]:
    """Check every split of `config.data.splits`; writes nothing.

    Raises:
        AnnotationError: missing or faulty annotations.
        BuildError: a split that is only searched has no video files.
    """
    folder = DatasetFolder(config.data.root)
    wanted = {split: _durations(folder, split, config) for split in config.data.splits}
    everywhere = {id_of(name) for names in wanted.values() for name in names}
    # Spawned, because a fork of a process with threads can hang.
    with ProcessPoolExecutor(config.data.decode_workers, mp_context=get_context("spawn")) as pool:
        checks = []
        for split, durations in wanted.items():
            check, single = _files_of_split(folder, split, durations, everywhere, config)
            if progress:
                progress(f"{split}: opening {len(single)} videos")
            for name, probed in zip(single, pool.map(_probe, single.values(), chunksize=8), strict=True):
                annotated = durations[name]
                if isinstance(probed, str):
                    check.undecodable[name] = probed
                elif annotated is not None and probed is not None and _differ(annotated, probed):
                    check.mismatched[name] = (annotated, probed)
            checks.append(check)
    return checks


def check_table(checks: list[SplitCheck]) -> Table:
    """Counts, one row a split."""
    table = Table("split", "videos", "missing", "two files", "undecodable", "other length", "unused files")
    for check in checks:
        counts = (check.videos, len(check.missing), len(check.twice), len(check.undecodable), len(check.mismatched))
        table.add_row(check.split, *map(str, counts), str(check.unused))
    return table


def _durations(folder: DatasetFolder, split: str, config: Config) -> dict[str, float | None]:
    """Seconds by video id, sorted; None where nothing says how long a video is."""
    if config.data.search_only:
        source = videos_folder(folder, split, config.data)
        found: dict[str, float | None] = dict.fromkeys(sorted(video_files(source)))
        if not found:
            raise BuildError(f"split {split!r}: {source} has no video files; set data.videos")
        return found
    path = config.data.annotations.get(split, folder.annotations(split))
    rows = read_annotations(path, config.data.beyond_duration)
    return {row.video: row.duration for row in sorted(reversed(rows), key=lambda row: row.video)}  # the first counts


def _files_of_split(
    folder: DatasetFolder, split: str, durations: dict[str, float | None], everywhere: set[str], config: Config
) -> tuple[SplitCheck, dict[str, Path]]:
    """What the names of the files tell, and the file of each video that has just one."""
    source = videos_folder(folder, split, config.data)
    files = video_files(source)
    named = everywhere if config.data.videos else {id_of(name) for name in durations}  # that folder serves all splits
    found = {name: files.get(id_of(name), []) for name in durations}
    check = SplitCheck(
        split,
        str(source),
        videos=len(durations),
        missing=[name for name, paths in found.items() if not paths],
        twice={name: [str(path) for path in paths] for name, paths in found.items() if len(paths) > 1},
        unused=sum(len(files[name]) for name in files.keys() - named),
    )
    return check, {name: paths[0] for name, paths in found.items() if len(paths) == 1}


def _probe(path: Path) -> float | str | None:
    """In a process of the pool: seconds, None where the container states none, or why the video cannot be used."""
    try:
        return probe_video(path)
    except VideoError as error:
        return error.reason


def _differ(annotated: float, found: float) -> bool:
    return abs(annotated - found) > max(TOLERANCE_SECONDS, TOLERANCE_SHARE * annotated)
