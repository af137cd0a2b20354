"""What a split is built from: its annotations, and the one video file of each video they name.

The corpus is in the order of the video ids, the queries in the order of the annotation file. A split that is only
searched has no annotations: its corpus is every video file of its folder. Paths into the dataset folder are kept
relative to it, so that it can be moved.
"""

from __future__ import annotations

import os
import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vsr1.formats.annotations import Annotation, read_annotations
from vsr1.formats.dataset import DatasetFolder
from vsr1.settings.data import DataConfig

VIDEO_EXTENSIONS = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v")


class BuildError(ValueError):
    """A dataset that cannot be built; the message names the file and what to do."""


@dataclass(frozen=True)
class Video:
    """`path` is None where no file of that name exists.

    `duration` in seconds is the annotated one; without annotations it is 0 until the video is decoded.
    """

    video_id: str
    path: Path | None
    duration: float


@dataclass(frozen=True)
class Manifest:
    """A split: its videos sorted by id, its annotations in file order."""

    split: str
    videos: dict[str, Video]
    annotations: list[Annotation]

    def without(self, failed: set[str]) -> Manifest:
        """The split without some videos and their queries.

        Raises:
            BuildError: fewer than two videos are left.
        """
        return _checked(
            self.split,
            {name: video for name, video in self.videos.items() if name not in failed},
            [row for row in self.annotations if row.video not in failed],
        )


def load_manifest(folder: DatasetFolder, split: str, data: DataConfig) -> Manifest:
    """Read the annotations of a split and find its video files.

    Raises:
        AnnotationError: missing or faulty annotations.
        BuildError: two files of one video id, no video files where there is nothing else, or fewer than two videos.
    """
    source = videos_folder(folder, split, data)
    files = video_files(source)
    if data.search_only:
        durations = dict.fromkeys(files, 0.0)
        annotations = []
        if not files:
            raise BuildError(f"{source} has no video files ({', '.join(VIDEO_EXTENSIONS)}); set data.videos")
    else:
        annotations = read_annotations(folder.annotations(split), data.beyond_duration)
        durations = {}
        for row in annotations:
            durations.setdefault(row.video, row.duration)
    found = {name: files.get(id_of(name), []) for name in sorted(durations)}
    twice = [f"{name!r} ({', '.join(map(str, paths))})" for name, paths in found.items() if len(paths) > 1]
    if twice:
        more = f" and {len(twice) - 3} more" if len(twice) > 3 else ""
        raise BuildError(f"video ids with more than one file: {'; '.join(twice[:3])}{more}; keep one file of each")
    videos = {name: Video(name, paths[0] if paths else None, durations[name]) for name, paths in found.items()}
    return _checked(split, videos, annotations)


def videos_folder(folder: DatasetFolder, split: str, data: DataConfig) -> Path:
    """Where the source videos of a split lie."""
    return data.videos or folder.raw_videos(split)


def with_durations(manifest: Manifest, seconds: dict[str, float]) -> Manifest:
    """The split with durations by video id in place of its own."""
    videos = {name: replace(video, duration=seconds[name]) for name, video in manifest.videos.items()}
    return replace(manifest, videos=videos)


def corpus_row(folder: DatasetFolder, split: str, video: Video) -> dict[str, Any]:
    """The whole video as one document (data-eval.md §1.2)."""
    return {
        "doc_id": video.video_id,
        "video_id": video.video_id,
        "video_path": video_path(folder, split, video),
        "start": 0.0,
        "end": video.duration,
        "duration": video.duration,
    }


def video_path(folder: DatasetFolder, split: str, video: Video) -> str:
    """The source file, or the clip where a prepared dataset brings no source."""
    return portable(folder, video.path or folder.clips(split) / f"{video.video_id}.npy")


def portable(folder: DatasetFolder, path: Path) -> str:
    """A path relative to the dataset folder where it lies in it."""
    return path.relative_to(folder.root).as_posix() if path.is_relative_to(folder.root) else path.as_posix()


def query_row(annotation: Annotation) -> dict[str, Any]:
    """One query (data-eval.md §1.2)."""
    return {
        "qid": annotation.qid,
        "query": annotation.fig_desc,
        "pos_doc_id": annotation.video,
        "weight": 1.0,
        "fig_score": annotation.fig_desc_score,
    }


def video_files(folder: Path) -> dict[str, list[Path]]:
    """Video files of a folder and its sub-folders by stem, hidden ones left out; none where there is no folder.

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
    """A video id in the form that `video_files` has them."""
    return unicodedata.normalize("NFC", name)


def _checked(split: str, videos: dict[str, Video], annotations: list[Annotation]) -> Manifest:
    if len(videos) < 2:
        raise BuildError(
            f"split {split!r} has a corpus of {len(videos)} video(s) {list(videos)}; a search needs at least 2"
        )
    return Manifest(split, videos, annotations)
