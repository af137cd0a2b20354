"""What a split is built from: its annotations, and the one video file of each video they name.

The corpus is in the order of the video ids, the queries in the order of the annotation file. A split that is only
searched has no annotations: its corpus is every video file of its folder. Paths into the dataset folder are kept
relative to it, so that it can be moved.
"""

from __future__ import annotations

import os
import shutil
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vsr1.formats.annotations import Annotation, FaultyRow, read_annotations
from vsr1.formats.atomic import replacing, write_lines
from vsr1.formats.dataset import DatasetFolder
from vsr1.settings.data import DataConfig
from vsr1.video.container import printable

Row = dict[str, Any]  # of a file of JSON lines
Announce = Callable[[str], None]  # takes a line that says how far a build is
NAMED = 3  # videos in a message
# Endings of the containers and raw streams that FFmpeg reads pictures from.
VIDEO_EXTENSIONS = frozenset({
    ".3g2", ".3gp", ".3gpp", ".264", ".265", ".266", ".amv", ".apng", ".asf", ".av1", ".avc", ".avi", ".bik", ".cavs",
    ".dif", ".divx", ".dv", ".dvr-ms", ".evo", ".f4v", ".flc", ".fli", ".flv", ".gif", ".gxf", ".h261", ".h263",
    ".h264", ".h265", ".hevc", ".ismv", ".isom", ".ivf", ".m1v", ".m2p", ".m2t", ".m2ts", ".m2v", ".m4p", ".m4v",
    ".mj2", ".mjpeg", ".mjpg", ".mk3d", ".mkv", ".mod", ".mov", ".mp2v", ".mp4", ".mp4v", ".mpe", ".mpeg", ".mpg",
    ".mpv", ".mts", ".mxf", ".nsv", ".nut", ".nuv", ".obu", ".ogm", ".ogv", ".ogx", ".qt", ".rm", ".rmvb", ".roq",
    ".smk", ".tod", ".tp", ".trp", ".ts", ".vc1", ".vob", ".vp8", ".vp9", ".vro", ".webm", ".wm", ".wmv", ".wtv",
    ".y4m",
})  # fmt: skip


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
    """A split: its videos sorted by id, its annotations in file order, and all video files of the folder `place`."""

    split: str
    videos: dict[str, Video]
    annotations: list[Annotation]
    place: Path = Path()
    files: list[Path] = field(default_factory=list)

    def without(self, failed: Collection[str], lost: Collection[str] = ()) -> Manifest:
        """Return the split without some videos and their queries, and without the queries of lost moments.

        Raises:
            BuildError: fewer than two videos are left.
        """
        videos = {name: video for name, video in self.videos.items() if name not in failed}
        if len(videos) < 2:
            raise BuildError(
                f"split {self.split!r} has a corpus of {len(videos)} video(s) {list(videos)}; a search needs at least 2"
            )
        rows = [row for row in self.annotations if row.video in videos and row.qid not in lost]
        return replace(self, videos=videos, annotations=rows)


def copy_annotations(folder: DatasetFolder, split: str, data: DataConfig) -> None:
    """Bring the annotation file that `data.annotations` names into the folder, without faulty rows where they are
    dropped; those are listed. A file that is as others here expect it is copied byte by byte.

    Raises:
        AnnotationError: missing or faulty annotations.
        BuildError: rows would be dropped from a file that lies in the folder.
    """
    target = folder.annotations(split)
    source = data.annotations.get(split, target)
    if not source.is_file() or (source == target and data.faulty_rows == "error"):
        return
    dropped: list[FaultyRow] = []
    rows = read_annotations(source, data.beyond_duration, dropped if data.faulty_rows == "drop" else None)
    if source == target:
        if dropped:
            raise BuildError(f"{target} has {len(dropped)} faulty rows to drop; keep it elsewhere, in data.annotations")
        return
    with source.open("rb") as content:
        head = content.read(2)
    if head[:1] == b"{" and 0 not in head and not dropped:
        with replacing(target) as part:
            shutil.copyfile(source, part)
    else:
        write_lines(target, [row.model_dump() for row in rows])
    write_lines(folder.dropped_rows(split), [row.model_dump() for row in dropped])


def find_videos(folder: DatasetFolder, split: str, data: DataConfig) -> Manifest:
    """Read the annotations of a split and find the files of its videos; these may be none or several.

    Raises:
        AnnotationError: missing or faulty annotations.
        BuildError: a folder of videos that does not exist, no video files where there is nothing else, or several ids
            of one file.
    """
    place = data.videos or folder.raw_videos(split)
    if not place.is_dir() and (data.videos or data.search_only):
        raise BuildError(f"the folder of videos {place} does not exist; set data.videos")
    everything = list(_walk(place, frozenset()))
    files = [path for path in everything if path.suffix.lower() in VIDEO_EXTENSIONS]
    if data.search_only:
        if not files:
            raise BuildError(f"{place} has no video files (.mp4, .mkv and what else FFmpeg reads); set data.videos")
        named = _named_once(place, files)
        videos = {name: Video(name, named[name], 0.0) for name in sorted(named)}
        return Manifest(split, videos, [], place, files)
    rows = read_annotations(
        data.annotations.get(split, folder.annotations(split)),
        data.beyond_duration,
        [] if data.faulty_rows == "drop" else None,
    )
    names = _by_name(place, everything)
    seconds = {row.video: row.duration for row in reversed(rows)}  # of several rows of a video the first counts
    videos = {name: Video(name, names.get(id_of(name), []), seconds[name]) for name in sorted(seconds)}
    ids: dict[Path, list[str]] = {}
    for video in videos.values():
        for path in video.files:
            ids.setdefault(path, []).append(video.video_id)
    if several := {path: named for path, named in ids.items() if named[1:]}:
        lines = [f"{printable(path)} is {' and '.join(map(ascii, named))}" for path, named in several.items()]
        raise BuildError(
            f"split {split!r} has {len(several)} video files under several ids, and each would be searched several "
            f"times: {'; '.join(lines[:NAMED])}; write one id for each in the annotations"
        )
    return Manifest(split, videos, rows, place, files)


def files_by_name(place: Path) -> dict[str, list[Path]]:
    """Return the files of a folder of videos by what an annotation may call them, as `id_of` writes it."""
    return _by_name(place, _walk(place, frozenset()))


def load_manifest(folder: DatasetFolder, split: str, data: DataConfig) -> Manifest:
    """Find what a split is built from.

    Raises:
        AnnotationError, BuildError: as `find_videos`, or two files of one video id, or fewer than two videos.
    """
    manifest = find_videos(folder, split, data)
    twice = [
        f"{v!r} ({', '.join(map(printable, video.files))})" for v, video in manifest.videos.items() if video.files[1:]
    ]
    if twice:
        more = f" and {len(twice) - NAMED} more" if len(twice) > NAMED else ""
        raise BuildError(
            f"video ids with more than one file: {'; '.join(twice[:NAMED])}{more}; keep one file of each, or use the "
            f"path below {manifest.place} without its ending as id"
        )
    return manifest.without(())


def check_failures(failed: Mapping[str, str], total: int, tolerated: float, what: str, remedy: str) -> None:
    """Raise a `BuildError` that shows the first of the failures, by id, if they are more than a share of the total."""
    if len(failed) > tolerated * total:
        first = "; ".join(f"{name}: {reason}" for name, reason in list(failed.items())[:NAMED])
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


def id_of(name: str) -> str:
    """Return a video id in Unicode's composed form, because some file systems take names apart (é as e and an accent).

    A byte of a file's name that is no UTF-8 stands as %XX.
    """
    text = "".join(f"%{ord(sign) - 0xDC00:02X}" if 0xDC80 <= ord(sign) <= 0xDCFF else sign for sign in name)
    return unicodedata.normalize("NFC", text)


def _walk(folder: Path, above: frozenset[Path]) -> Iterator[Path]:
    """Yield the files of a folder and its sub-folders, sorted, but no hidden ones; linked folders too, if they do not
    lead back up.
    """
    real = folder.resolve()
    if real in above or not folder.is_dir():
        return
    for name in sorted(os.listdir(folder)):
        path = folder / name
        if name.startswith("."):
            continue
        if path.is_dir():
            yield from _walk(path, above | {real})
        else:
            yield path


def _by_name(place: Path, files: Iterable[Path]) -> dict[str, list[Path]]:
    names: dict[str, list[Path]] = {}
    for path in files:
        for name in _names(place, path):
            names.setdefault(name, []).append(path)
    return names


def _names(place: Path, path: Path) -> set[str]:
    """Return what an annotation may call a file: its name or its path, and a video's without the ending."""
    below = path.relative_to(place)
    names = [path.name, below.as_posix()]
    if path.suffix.lower() in VIDEO_EXTENSIONS:
        names += [path.stem, below.with_suffix("").as_posix()]
    return {id_of(name) for name in names}


def _named_once(place: Path, files: list[Path]) -> dict[str, list[Path]]:
    """Return files by id: the name without its ending, or the path where several files have that name."""
    by_stem: dict[str, list[Path]] = {}
    for path in files:
        by_stem.setdefault(id_of(path.stem), []).append(path)
    named: dict[str, list[Path]] = {}
    for stem, paths in by_stem.items():
        for path in paths:
            below = id_of(path.relative_to(place).with_suffix("").as_posix())
            named.setdefault(below if paths[1:] else stem, []).append(path)
    return named
