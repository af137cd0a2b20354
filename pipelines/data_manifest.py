"""What a split is built from: its annotations, and the one video file of each video they name.

The corpus is in the order of the video ids, the queries in the order of the annotation file. Paths are kept relative to
the dataset folder, so that the folder can be moved.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vsr1.formats.annotations import Annotation, read_annotations
from vsr1.formats.dataset import DatasetFolder

VIDEO_EXTENSIONS = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v")


class BuildError(ValueError):
    """A dataset that cannot be built; the message names the file and what to do."""


@dataclass(frozen=True)
class Video:
    """`path` is None where no file of that name exists; `duration` in seconds, as annotated."""

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


def load_manifest(folder: DatasetFolder, split: str, beyond_duration: Literal["error", "keep"]) -> Manifest:
    """Read the annotations of a split and find its video files.

    Raises:
        AnnotationError: missing or faulty annotations.
        BuildError: two files of one video id, or fewer than two videos.
    """
    annotations = read_annotations(folder.annotations(split), beyond_duration)
    files = _video_files(folder.raw_videos(split))
    durations: dict[str, float] = {}
    for row in annotations:
        durations.setdefault(row.video, row.duration)
    videos = {name: Video(name, files.get(name), durations[name]) for name in sorted(durations)}
    return _checked(split, videos, annotations)


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
    """The source file, or the clip where a prepared dataset brings no source; relative to the dataset folder."""
    path = video.path or folder.clips(split) / f"{video.video_id}.npy"
    return path.relative_to(folder.root).as_posix()


def query_row(annotation: Annotation) -> dict[str, Any]:
    """One query (data-eval.md §1.2)."""
    return {
        "qid": annotation.qid,
        "query": annotation.fig_desc,
        "pos_doc_id": annotation.video,
        "weight": 1.0,
        "fig_score": annotation.fig_desc_score,
    }


def _video_files(folder: Path) -> dict[str, Path]:
    """Video files by stem; none where there is no folder, as in a dataset that brings clips only."""
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.suffix.lower() not in VIDEO_EXTENSIONS or path.name.startswith("."):
            continue
        if path.stem in files:
            raise BuildError(
                f"video id {path.stem!r} has two files in {folder}: {files[path.stem].name} and {path.name}; remove one"
            )
        files[path.stem] = path
    return files


def _checked(split: str, videos: dict[str, Video], annotations: list[Annotation]) -> Manifest:
    if len(videos) < 2:
        raise BuildError(
            f"split {split!r} has a corpus of {len(videos)} video(s) {list(videos)}; a search needs at least 2"
        )
    return Manifest(split, videos, annotations)
