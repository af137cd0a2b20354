"""Samples a video file: the pictures that a player shows, each with its true time, or a `VideoError`; never a guess.

Times count on the clock of the container: 0 is where its first stream begins, which may be sound before the pictures.
Size and number of frames follow the published extraction (data-eval.md §1.5). Its rule by number is `legacy`; by time,
which gives the same frames of a film of constant rate, is the other. Turned and mirrored pictures are upright, pixels
square. Packets are read first, which is cheap, then the file is decoded once, and a second time only where what decodes
is not what its packets had promised. What decoded is compared with what the container says.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from vsr1.video.container import (
    NO_FRAME,
    Shown,
    VideoError,
    check_file,
    decoded_frames,
    open_video,
    read_packets,
    shown_size,
    stated_lengths,
    timed_frames,
    upright,
    zero_of,
)

Sampling = Literal["time", "legacy"]
TOLERANCE_SECONDS = 1.0  # that a length may differ from what is said of it
TOLERANCE_SHARE = 0.02  # of the length that is said, where that is more
ROUNDING = Fraction(1, 1000)  # second; Matroska has no finer clock


@dataclass(frozen=True, eq=False)
class SampledVideo:
    """What was taken of a video. T is even; `even_pad_applied` says that the last frame is there twice.

    `indices` are the positions of the frames in the decoded video, without the pad. A frame that is on longer than the
    samples are apart has its position again for each, with the time of the sample.
    `reported_frames` is the container's own count, 0 if it has none.
    """

    frames: np.ndarray  # uint8 [T, H, W, 3], RGB
    timestamps: np.ndarray  # float64 [T], seconds
    indices: list[int]
    total_frames: int
    duration: float  # seconds, up to the end of the last picture
    raw_fps: float  # frames per second, mean over the pictures
    requested_indices: list[int]
    even_pad_applied: bool
    reported_frames: int
    clock_start: float = 0.0  # second of the file's own clock that is 0 here
    fault: str = ""  # why there is less in the file than it says, empty if there is not


def sample_video(
    path: Path,
    *,
    fps: float,
    max_frames: int,
    max_pixels: int,
    sampling: Sampling = "time",
    progress: Callable[[int, int], None] | None = None,
) -> SampledVideo:
    """Decode frames spread evenly over a whole video, its first and last frame included.

    Args:
        fps: frames per second of video to keep.
        max_frames: most frames; the even pad can add one to an odd limit.
        max_pixels: a frame with more is shrunk, bicubic, keeping its aspect.
        sampling: spread over the seconds, or over the numbers of the frames.
        progress: called with frames decoded and frames in all, for each.

    Raises:
        VideoError: missing or empty file, not a video, no video stream, not one frame that decodes, or a clock that
            goes back.
    """
    check_file(path)
    container, stream = open_video(path)
    with container:
        packets = read_packets(path, container, stream)
        reported = stream.frames
    guess, _ = _choice(packets, fps, max_frames, sampling) if packets.times else ([], [])
    watch = (lambda count: progress(count, len(packets.times))) if progress else None
    decoded = _decode(path, frozenset(guess), max_pixels, watch)
    indices, times = _choice(decoded.shown, fps, max_frames, sampling)
    if not decoded.images.keys() >= set(indices):
        decoded = _decode(path, frozenset(indices), max_pixels, watch)
    shown, pad = decoded.shown, len(indices) % 2
    shown.end = max(shown.end, packets.stays)
    span = shown.end - shown.times[0]
    return SampledVideo(
        frames=np.stack([decoded.images[index] for index in indices + indices[-1:] * pad]),
        timestamps=np.array([float(t - decoded.zero) for t in times + times[-1:] * pad], np.float64),
        indices=indices,
        total_frames=len(shown.times),
        duration=float(shown.end - decoded.zero),
        raw_fps=float(len(shown.times) / span) if span else 0.0,
        requested_indices=indices,
        even_pad_applied=bool(pad),
        reported_frames=reported,
        clock_start=float(decoded.zero),
        fault=_loss(decoded.stated, shown, packets),
    )


def probe_video(path: Path) -> float:
    """Return the seconds of a video, up to the end of its last picture; all packets are read and one frame decoded.

    Raises:
        VideoError: missing or empty file, not a video, no video stream, no frame that decodes, a length of zero, or
            less in the file than its container says.
    """
    check_file(path)
    container, stream = open_video(path)
    with container:
        stated, packets = stated_lengths(container, stream), read_packets(path, container, stream)
        zero = zero_of(container, stream, packets.times[0]) if packets.times else Fraction(0)
    container, stream = open_video(path)
    with container:
        if next(decoded_frames(path, container, stream), None) is None:
            raise VideoError(path, NO_FRAME)
    if fault := _loss(stated, packets, packets):
        raise VideoError(path, fault)
    seconds = packets.end - zero
    if seconds <= 0:
        raise VideoError(path, f"has a length of {float(seconds)} s; fetch it again")
    return float(seconds)


def frame_indices(total_frames: int, duration: Fraction | float, fps: float, max_frames: int) -> list[int]:
    """Return the positions of a truncated linspace over the frames: reference behaviour, data-eval.md §1.5."""
    count = min(total_frames, max_frames, max(1, math.floor(float(duration) * fps)))
    return [int(index) for index in np.linspace(0, total_frames - 1, count)]


def _choice(shown: Shown, fps: float, max_frames: int, sampling: Sampling) -> tuple[list[int], list[Fraction]]:
    """Return which frames are taken, and their seconds of the file's clock."""
    times = shown.times
    first, last = times[0], times[-1]
    if sampling == "legacy":
        indices = frame_indices(len(times), shown.end - first, fps, max_frames)
        return indices, [times[index] for index in indices]
    count = min(max_frames, max(1, math.floor(float(shown.end - first + ROUNDING) * fps)))
    samples = [first + (last - first) * step / max(1, count - 1) for step in range(count)]
    indices = [bisect_right(times, sample + ROUNDING) - 1 for sample in samples]
    is_again = [index == before for before, index in zip([-1, *indices], indices, strict=False)]
    return indices, [
        sample if again else times[index] for index, sample, again in zip(indices, samples, is_again, strict=True)
    ]


def differs(stated: float, seconds: float) -> bool:
    """Return whether a video of so many seconds is another length than is said of it."""
    return abs(stated - seconds) > _tolerance(stated)


@dataclass(frozen=True)
class _Decoded:
    """One decode from beginning to end; `zero` is the second of the file's clock that players call 0."""

    images: dict[int, np.ndarray]  # uint8 [H, W, 3], the wanted frames by their position
    shown: Shown
    zero: Fraction
    stated: tuple[Fraction | None, Fraction | None]  # as `stated_lengths` gives them


def _decode(path: Path, wanted: frozenset[int], max_pixels: int, watch: Callable[[int], None] | None) -> _Decoded:
    """Decode all frames, keep those whose position is wanted, all in the size of the first."""
    images: dict[int, np.ndarray] = {}
    size: tuple[int, int] | None = None
    shown = Shown()
    container, stream = open_video(path)
    with container:
        stated = stated_lengths(container, stream)
        for begin, seconds, frame in timed_frames(path, container, stream):
            number = len(shown.times)
            if number in wanted:
                size = size or shrunk_size(*shown_size(frame, stream), max_pixels)
                image = Image.fromarray(np.ascontiguousarray(upright(frame)))
                image = image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)
                images[number] = np.asarray(image)
            shown.add(begin, seconds)
            if watch:
                watch(number + 1)
        if not shown.times:
            raise VideoError(path, NO_FRAME)
        return _Decoded(images, shown, zero_of(container, stream, shown.times[0]), stated)


def _loss(stated: tuple[Fraction | None, Fraction | None], shown: Shown, packets: Shown) -> str:
    """Return what a file lacks of what its header and its packets promise, empty if it lacks nothing.

    Args:
        stated: as `stated_lengths` gives them.
        shown: the pictures that decode.
    """
    pictures, last = stated
    remedy = f"{packets.fault or 'the file is cut or damaged; fetch it again'}"
    span = shown.end - shown.times[0] if shown.times else Fraction(0)
    if pictures is not None and pictures - span > _tolerance(pictures):
        return f"its pictures last {float(span):.1f} s, its container says {float(pictures):.1f} s: {remedy}"
    reach = max(packets.reach, shown.end)
    if last is not None and last - reach > _tolerance(last):
        return f"it ends at {float(reach):.1f} s, its container says {float(last):.1f} s: {remedy}"
    if packets.is_cut:
        return f"it ends at {float(shown.end):.1f} s in the middle of a fragment or packet: {remedy}"
    if packets.fault and pictures is None and last is None:
        return packets.fault
    for begin, end in pairwise([*shown.times, max(shown.end, packets.end)]):
        lost = bisect_left(packets.times, end) - bisect_right(packets.times, begin)
        if lost > 1 and end - begin > _tolerance(packets.end):
            return f"the {lost} pictures from {float(begin):.1f} to {float(end):.1f} s do not decode; fetch it again"
    return ""


def _tolerance(stated: float | Fraction) -> float:
    return max(TOLERANCE_SECONDS, TOLERANCE_SHARE * float(stated))


def shrunk_size(width: int, height: int, max_pixels: int) -> tuple[int, int]:
    """Return width and height after shrinking to at most `max_pixels`, each side truncated; no rounding to a grid."""
    if width * height <= max_pixels:
        return width, height
    ratio = math.sqrt(max_pixels / (width * height))
    return max(1, int(width * ratio)), max(1, int(height * ratio))
