"""What a split is built from: its annotations, and the one video file of each video they name.

The corpus is in the order of the video ids, the queries in the order of the annotation file. A split that is only
searched has no annotations: its corpus is every video file of its folder. Paths into the dataset folder are kept
relative to it, so that it can be moved.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vsr1.formats.annotations import Annotation, read_annotations
from vsr1.formats.dataset import DatasetFolder
from vsr1.settings.data import DataConfig

Row = dict[str, Any]  # of a file of JSON lines
Announce = Callable[[str], None]  # takes a line that says how far a build is
VIDEO_EXTENSIONS = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v")


class BuildError(ValueError):
    """A dataset that cannot be built; the message names the file and what to do."""


@dataclass(frozen=True)
class Video:
    """`files` are all that bear its name; there should be one.

    `duration` in seconds is the annotated one; without annotations it is 0 until the video is decoded.
    """

    video_id: str
    files: list[Path]
    duration: float

    @property
    def path(self) -> Path | None:
        """Return its file, None where there is none."""
        return self.files[0] if self.files else None


@dataclass(frozen=True)
class Manifest:
    """A split: its videos sorted by id, its annotations in file order, and the video files of the folder `place`."""

    split: str
    videos: dict[str, Video]
    annotations: list[Annotation]
    place: Path = Path()
    files: dict[str, list[Path]] = field(default_factory=dict)  # by the form of their ids that `id_of` gives

    def without(self, failed: Collection[str]) -> Manifest:
        """Return the split without some videos and their queries.

        Raises:
            BuildError: fewer than two videos are left.
        """
        videos = {name: video for name, video in self.videos.items() if name not in failed}
        if len(videos) < 2:
            raise BuildError(
                f"split {self.split!r} has a corpus of {len(videos)} video(s) {list(videos)}; a search needs at least 2"
            )
        return replace(self, videos=videos, annotations=[row for row in self.annotations if row.video in videos])


def find_videos(folder: DatasetFolder, split: str, data: DataConfig) -> Manifest:
    """Read the annotations of a split and find the files of its videos; these may be none or several.

    Raises:
        AnnotationError: missing or faulty annotations.
        BuildError: no video files where there is nothing else.
    """
    place = data.videos or folder.raw_videos(split)
    files = video_files(place)
    if data.search_only:
        if not files:
            raise BuildError(f"{place} has no video files ({', '.join(VIDEO_EXTENSIONS)}); set data.videos")
        rows, seconds = [], dict.fromkeys(files, 0.0)
    else:
        rows = read_annotations(data.annotations.get(split, folder.annotations(split)), data.beyond_duration)
        seconds = {row.video: row.duration for row in reversed(rows)}  # of several rows of a video the first counts
    videos = {name: Video(name, files.get(id_of(name), []), seconds[name]) for name in sorted(seconds)}
    return Manifest(split, videos, rows, place, files)


def load_manifest(folder: DatasetFolder, split: str, data: DataConfig) -> Manifest:
    """Find what a split is built from.

    Raises:
        AnnotationError, BuildError: as `find_videos`, or two files of one video id, or fewer than two videos.
    """
    manifest = find_videos(folder, split, data)
    twice = [f"{v!r} ({', '.join(map(str, video.files))})" for v, video in manifest.videos.items() if video.files[1:]]
    if twice:
        more = f" and {len(twice) - 3} more" if len(twice) > 3 else ""
        raise BuildError(f"video ids with more than one file: {'; '.join(twice[:3])}{more}; keep one file of each")
    return manifest.without(())


def check_failures(failed: dict[str, str], total: int, tolerated: float, what: str, remedy: str) -> None:
    """Raise a `BuildError` that shows the first of the failures, by id, if they are more than a share of the total."""
    if len(failed) > tolerated * total:
        first = "; ".join(f"{name}: {reason}" for name, reason in list(failed.items())[:3])
        raise BuildError(f"{len(failed)} of {total} {what} ({first}), {remedy}={tolerated}")


def video_path(folder: DatasetFolder, split: str, video: Video) -> str:
    """Return the source file, or the clip where a prepared dataset brings no source."""
    return portable(folder, video.path or folder.clips(split) / f"{video.video_id}.npy")


def portable(folder: DatasetFolder, path: Path) -> str:
    """Return a path relative to the dataset folder where it lies in it."""
    return path.relative_to(folder.root).as_posix() if path.is_relative_to(folder.root) else path.as_posix()


def query_row(annotation: Annotation) -> Row:
    """Return one query (data-eval.md §1.2)."""
    return {
        "qid": annotation.qid,
        "query": annotation.fig_desc,
        "pos_doc_id": annotation.video,
        "weight": 1.0,
        "fig_score": annotation.fig_desc_score,
    }


def video_files(folder: Path) -> dict[str, list[Path]]:
    """Find the video files of a folder and its sub-folders by stem, hidden ones left out; none if there is no folder.

    Stems are in Unicode's composed form, because some file systems take names apart (é as e and an accent).
    """
    files: dict[str, list[Path]] = {}
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(parent) / name
            if path.suffix.lower() in VIDEO_EXTENSIONS and not name.startswith("."):
                files.setdefault(id_of(path.stem), []).append(path)
    return files


def id_of(name: str) -> str:
    """Return a video id in the form that `video_files` has them."""
    return unicodedata.normalize("NFC", name)
