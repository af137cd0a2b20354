"""Clips on disk: `<video id>.npy` and its row in `meta.jsonl`, as the published data has them (data-eval.md §1.5), or
`<video id>.mkv` of a tenth of the size, whose row names it under `output_compact_path` with the hash of its frames.

A clip file appears whole or not at all. A clip that is read has uint8 frames, an even number of them, and one time for
each; anything else is a `ClipError`, never a shorter clip.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePath
from typing import Literal, NotRequired, TypedDict

import numpy as np

from vsr1.formats.arrays import read_array
from vsr1.formats.atomic import replacing, write_lines
from vsr1.settings.data import DataConfig
from vsr1.storage import fetched
from vsr1.video.compact import frames_digest, read_frames, write_frames
from vsr1.video.container import VideoError
from vsr1.video.decode import SampledVideo, sample_video
from vsr1.video.faults import work_on

META = "meta.jsonl"
Storage = Literal["npy", "compact"]
_SUFFIX: dict[Storage, str] = {"npy": ".npy", "compact": ".mkv"}


class ClipMeta(TypedDict):
    """A row of `meta.jsonl`: seconds, pixels, and indices of frames in the source."""

    source_video_path: str
    source_total_frames: int
    source_duration_sec: float
    raw_fps: float
    target_sample_fps: float
    target_max_frames: int
    requested_indices_src: list[int]
    sampled_indices_src: list[int]
    sampled_timestamps_sec: list[float]
    sampled_frames_before_even_pad: int
    even_pad_applied: bool
    output_num_frames: int
    output_height: int
    output_width: int
    output_dtype: str
    extract_utc: str
    video_id: str
    output_npy_path: NotRequired[str]  # published rows need not say how they are stored, and mean npy
    output_compact_path: NotRequired[str]
    output_compact_sha256: NotRequired[str]  # as `read_frames` takes it
    source_clock_start_sec: NotRequired[float]  # second of the file's own clock that is 0 here, if it is not 0
    source_fault: NotRequired[str]  # what the file lacks of what its container says


class ClipError(ValueError):
    """A clip that is missing or not usable; the message names it, its folder and what to do."""


@dataclass(frozen=True, eq=False)
class Clip:
    """Sampled frames of one video. Two clips with one `content_hash` give a model the same input."""

    video_id: str
    frames: np.ndarray  # uint8 [T, H, W, 3], RGB
    timestamps: np.ndarray  # float64 [T], seconds
    content_hash: str  # sha256, 64 hexadecimal digits
    length: float | None = None  # seconds of the video, None where nobody knows

    @classmethod
    def make(cls, video_id: str, frames: np.ndarray, timestamps: np.ndarray, length: float | None = None) -> Clip:
        """Make a clip with its hash over shape, frames and timestamps; id and length are not part of it.

        Raises:
            ClipError: frames are not uint8 [T, H, W, 3] with T even and above 0, or timestamps not finite, rising [T].
        """
        frames = np.ascontiguousarray(frames)
        timestamps = np.ascontiguousarray(timestamps, np.dtype("<f8"))
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
            raise ClipError(f"clip {video_id!r}: frames are {frames.dtype} {frames.shape}, want uint8 [T, H, W, 3]")
        if len(frames) % 2:
            raise ClipError(f"clip {video_id!r}: {len(frames)} frames, want an even number; repeat the last one")
        if timestamps.shape != (len(frames),):
            raise ClipError(f"clip {video_id!r}: timestamps {timestamps.shape} for {len(frames)} frames")
        if not np.isfinite(timestamps).all() or (np.diff(timestamps) < 0).any():
            raise ClipError(f"clip {video_id!r}: timestamps are not finite and rising: {timestamps.tolist()}")
        return cls(video_id, frames, timestamps, frames_digest(frames, timestamps), length)

    @property
    def seconds(self) -> float:
        """Return the length of the video in seconds; where nobody knows, a mean interval past the last frame."""
        first, last = self.timestamps[[0, -1]]
        if self.length is not None:
            return max(self.length, float(last))
        return float(last + (last - first) / max(len(self.timestamps) - 1, 1))

    @property
    def nbytes(self) -> int:
        """Return the bytes of frames and timestamps."""
        return int(self.frames.nbytes + self.timestamps.nbytes)

    @property
    def reference(self) -> ClipReference:
        """Return what names it where it is not at hand."""
        return ClipReference(self.video_id, self.content_hash)


@dataclass(frozen=True)
class ClipReference:
    """Names a clip by its video and content, for one who reads it elsewhere."""

    video_id: str
    content_hash: str

    def check(self, clip: Clip) -> Clip:
        """Return the clip that was read.

        Raises:
            ClipError: its content is not the one that was named.
        """
        if clip.content_hash != self.content_hash:
            raise ClipError(
                f"clip {self.video_id!r} changed since it was shown: its content hash was {self.content_hash}, is "
                f"{clip.content_hash}; rebuild the dataset and start the run again, or restore the clip's file"
            )
        return clip


def make_clip(
    folder: Path,
    video_id: str,
    source: Path,
    data: DataConfig,
    progress: Callable[[int, int], None] | None = None,
) -> ClipMeta:
    """Sample a video file as `data` says, write its clip and return its row for `write_meta`.

    Args:
        progress: called with frames decoded and frames in all, for each.

    Raises:
        VideoError: a file that gives no frames, that lacks a part and `data.other_length` refuses it, or whose clip
            cannot bear its name.
    """
    with work_on(source):
        sampled = sample_video(
            source, fps=data.sample_fps, max_frames=data.max_frames, max_pixels=data.max_pixels,
            sampling=data.sampling, progress=progress,
        )  # fmt: skip
        if sampled.fault and data.other_length == "fail":
            raise VideoError(source, sampled.fault, "compare")
        return write_clip(
            folder, video_id, sampled, source=source, target_fps=data.sample_fps, max_frames=data.max_frames,
            storage=data.clip_storage,
        )  # fmt: skip


def write_clip(
    folder: Path,
    video_id: str,
    sampled: SampledVideo,
    *,
    source: Path,
    target_fps: float,
    max_frames: int,
    storage: Storage = "npy",
) -> ClipMeta:
    """Write the clip's file atomically and return its row for `write_meta`; a file of the other storage is removed.

    Args:
        source: the video file that was sampled, with `target_fps` frames per second and at most `max_frames`.
        storage: "npy" keeps the frames as they are, "compact" loses a little (vsr1/video/compact.py).

    Raises:
        ClipError: the id cannot be a file's stem, or that of one in a sub-folder.
    """
    if video_id in ("", ".") or PurePath(video_id).as_posix() != video_id or {"..", "/"} & {*PurePath(video_id).parts}:
        raise ClipError(f"video id {video_id!r} cannot name a file in {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{video_id}{_SUFFIX[storage]}"
    digest = ""
    with replacing(target) as part:
        if storage == "npy":
            np.save(part, sampled.frames, allow_pickle=False)
        else:
            digest = write_frames(part, sampled.frames)
    for suffix in set(_SUFFIX.values()) - {target.suffix}:
        (folder / f"{video_id}{suffix}").unlink(missing_ok=True)
    count = len(sampled.indices)
    row: ClipMeta = {
        "source_video_path": str(source),
        "source_total_frames": sampled.total_frames,
        "source_duration_sec": sampled.duration,
        "raw_fps": sampled.raw_fps,
        "target_sample_fps": target_fps,
        "target_max_frames": max_frames,
        "requested_indices_src": sampled.requested_indices,
        "sampled_indices_src": sampled.indices,
        "sampled_timestamps_sec": sampled.timestamps[:count].tolist(),
        "sampled_frames_before_even_pad": count,
        "even_pad_applied": sampled.even_pad_applied,
        "output_num_frames": int(sampled.frames.shape[0]),
        "output_height": int(sampled.frames.shape[1]),
        "output_width": int(sampled.frames.shape[2]),
        "output_dtype": str(sampled.frames.dtype),
        "extract_utc": datetime.now(UTC).isoformat(),
        "video_id": video_id,
    }
    if sampled.clock_start:
        row["source_clock_start_sec"] = sampled.clock_start
    if sampled.fault:
        row["source_fault"] = sampled.fault
    if storage == "npy":
        return row | {"output_npy_path": str(target)}
    return row | {"output_compact_path": str(target), "output_compact_sha256": digest}


def clip_storage(row: ClipMeta) -> Storage:
    """Return how the clip of a metadata row is stored."""
    return "compact" if "output_compact_path" in row else "npy"


def clip_file(folder: Path, video_id: str, row: ClipMeta) -> Path:
    """Return where the clip of a metadata row lies: in its folder, whatever the folder that the row names."""
    return folder / f"{video_id}{_SUFFIX[clip_storage(row)]}"


def player_offset(row: ClipMeta) -> float:
    """Return the seconds that a player of the source file adds to a time of the clip."""
    return row.get("source_clock_start_sec", 0.0)


def write_meta(folder: Path, rows: Iterable[ClipMeta]) -> None:
    """Write `meta.jsonl` atomically, sorted by video id; what it held before is gone."""
    write_lines(folder / META, [dict(row) for row in sorted(rows, key=lambda row: row["video_id"])])


class ClipFolder:
    """Reads the clips of one folder; `meta.jsonl` is read once, at construction.

    `true_seconds` gives each frame its time in the video. `legacy_index` gives frame i the time i / target_sample_fps,
    the clock that released checkpoints were trained with (data-eval.md §7.1).
    """

    def __init__(self, folder: Path, timestamps: Literal["true_seconds", "legacy_index"] = "true_seconds") -> None:
        self.folder = folder
        self.timestamps = timestamps
        self._rows = read_meta(folder)

    def video_ids(self) -> list[str]:
        """Return the ids of all clips in `meta.jsonl`, sorted."""
        return sorted(self._rows)

    def __contains__(self, video_id: str) -> bool:
        return video_id in self._rows

    def row(self, video_id: str) -> ClipMeta:
        """Return what `meta.jsonl` says of a clip.

        Raises:
            ClipError: no row of that id.
        """
        if video_id not in self._rows:
            raise ClipError(
                f"clip {video_id!r} has no row in {self.folder / META}; build the clips of this split again"
            )
        return self._rows[video_id]

    def read(self, video_id: str) -> Clip:
        """Read one clip from disk.

        Raises:
            ClipError: no row or no file of that id, or the two do not fit together.
        """
        row = self.row(video_id)
        path = fetched(clip_file(self.folder, video_id, row))
        if not path.is_file():
            raise ClipError(f"clip {video_id!r} has a row but no file {path}; build the clips of this split again")
        try:
            frames = _frames(path, row)
        except ValueError as error:
            raise ClipError(
                f"clip {video_id!r}: {path} is not a whole array ({error}); delete and rebuild it"
            ) from error
        try:
            length = row["source_duration_sec"] if self.timestamps == "true_seconds" else None
            return Clip.make(video_id, frames, self._times(row, len(frames) if frames.ndim else 0), length)
        except KeyError as error:
            raise ClipError(f"clip {video_id!r}: its row in {self.folder / META} has no {error}; rebuild it") from error
        except ClipError as error:
            raise ClipError(f"{path} and its row in {META} do not make a clip, rebuild it: {error}") from error

    def outline(self, video_id: str) -> Clip:
        """Return a clip of the size and the times of one, its frames black and without memory, from its row alone."""
        row = self.row(video_id)
        shape = row["output_num_frames"], row["output_height"], row["output_width"], 3
        return Clip(video_id, np.broadcast_to(np.uint8(0), shape), self._times(row, shape[0]), "")

    def _times(self, row: ClipMeta, count: int) -> np.ndarray:
        """Return float64 [T] seconds; the time of the last frame stands twice where the even pad repeated it."""
        if self.timestamps == "legacy_index":
            return np.arange(count, dtype=np.float64) / row["target_sample_fps"]
        times = row["sampled_timestamps_sec"]
        padded = row["even_pad_applied"] and len(times) == count - 1
        return np.array(times + times[-1:] * padded, np.float64)


def _frames(path: Path, row: ClipMeta) -> np.ndarray:
    if clip_storage(row) == "compact":
        return read_frames(path, row.get("output_compact_sha256"))
    return read_array(path)


def read_meta(folder: Path) -> dict[str, ClipMeta]:
    """Read the rows by file stem, because published paths are those of other machines; of several rows the last counts.

    Raises:
        ClipError: no `meta.jsonl`, or a line of it that is not a clip's row.
    """
    path = fetched(folder / META)
    if not path.is_file():
        raise ClipError(f"clip folder {folder} has no {META}; build the clips of this split first")
    rows: dict[str, ClipMeta] = {}
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            place = row.get("output_npy_path") or row.get("output_compact_path") or row["source_video_path"]
            stem, video_id = PurePath(place).stem, row.get("video_id", "")
            if "/" in video_id and PurePath(place).with_suffix("").as_posix().endswith(f"/{video_id}"):
                stem = video_id
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ClipError(f"{path} line {number} is not a clip's row ({error}); build the clips again") from error
        if row.get("status") != "skip_exists":
            rows[stem] = row
    return rows
