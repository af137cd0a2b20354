"""Samples a video file: the frames asked for, each with its own true time, or a `VideoError`; never a guess.

Frame count, frame choice and size follow the published extraction (data-eval.md §1.5). Two things differ: a container
that reports no frame count, or a wrong one, is counted by decoding, so that the sample spans the whole video; and the
timestamps are the frames' own, so that variable frame rate is right. A file is decoded once, and a second time only
where what decodes is not what the container or its packets had promised.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image

NO_FRAME = "not one frame of it decodes; the file is truncated or damaged, fetch it again"


class VideoError(ValueError):
    """A video file that gives no frames; the message names the file and the reason."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"video {path}: {reason}")
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[type[VideoError], tuple[Path, str]]:
        return VideoError, (self.path, self.reason)


@dataclass(frozen=True, eq=False)
class SampledVideo:
    """What was taken of a video. T is even; `even_pad_applied` says that the last frame is there twice.

    `indices` are the positions of the distinct frames in the decoded video and do not count the pad; they equal
    `requested_indices` because an index is only requested of frames that decode.
    `reported_frames` is the container's own count, 0 if it has none: where it is above `total_frames`, the file is
    truncated, damaged or cut by an edit list.
    """

    frames: np.ndarray  # uint8 [T, H, W, 3], RGB
    timestamps: np.ndarray  # float64 [T], seconds after the first frame of the video
    indices: list[int]
    total_frames: int
    duration: float  # seconds
    raw_fps: float  # frames per second, mean over the video
    requested_indices: list[int]
    even_pad_applied: bool
    reported_frames: int


@dataclass(frozen=True)
class _Pass:
    """One decode from beginning to end."""

    images: list[np.ndarray]  # uint8 [H, W, 3], the wanted frames
    times: list[Fraction]  # seconds after the first frame, one a wanted frame
    total_frames: int
    duration: Fraction  # seconds, up to the end of the last frame


def sample_video(path: Path, *, fps: float, max_frames: int, max_pixels: int) -> SampledVideo:
    """Decode frames spread evenly over a whole video, its first and last frame included.

    Args:
        fps: frames per second of video to keep.
        max_frames: most distinct frames; the even pad can add one to an odd limit.
        max_pixels: a frame with more is shrunk, bicubic, keeping its aspect.

    Raises:
        VideoError: missing or empty file, not a video, no video stream, or not one frame that decodes.
    """
    check_file(path)
    container, stream = open_video(path)
    with container:
        reported, stated = stream.frames, _stated_seconds(stream)
        expected = reported, stated or Fraction(0)
        if not all(expected):
            for count, seconds in packet_spans(path, container, stream):
                expected = count, seconds
    guess = frame_indices(*expected, fps, max_frames)
    decoded = _decode(path, frozenset(guess), max_pixels)
    duration = stated if stated and decoded.total_frames == reported else decoded.duration
    indices = frame_indices(decoded.total_frames, duration, fps, max_frames)
    if indices != guess:
        decoded = _decode(path, frozenset(indices), max_pixels)
    pad = len(indices) % 2
    return SampledVideo(
        frames=np.stack(decoded.images + decoded.images[-1:] * pad),
        timestamps=np.array([float(t) for t in decoded.times + decoded.times[-1:] * pad], np.float64),
        indices=indices,
        total_frames=decoded.total_frames,
        duration=float(duration),
        raw_fps=float(decoded.total_frames / duration),
        requested_indices=indices,
        even_pad_applied=bool(pad),
        reported_frames=reported,
    )


def probe_video(path: Path) -> float | None:
    """Return the seconds that the container states, None where it states none; one frame is decoded to see that it can.

    Raises:
        VideoError: missing or empty file, not a video, no video stream, no frame that decodes, or a length of zero.
    """
    check_file(path)
    container, stream = open_video(path)
    with container:
        seconds = _stated_seconds(stream)
        if seconds is None and container.duration is not None:
            seconds = Fraction(container.duration, av.time_base)
        if next(decoded_frames(path, container, stream), None) is None:
            raise VideoError(path, NO_FRAME)
    if seconds is not None and seconds <= 0:
        raise VideoError(path, f"has a length of {seconds} s; fetch it again")
    return None if seconds is None else float(seconds)


def frame_indices(total_frames: int, duration: Fraction | float, fps: float, max_frames: int) -> list[int]:
    """Return the positions of a truncated linspace over the frames: reference behaviour, data-eval.md §1.5."""
    count = min(total_frames, max_frames, max(1, math.floor(float(duration) * fps)))
    return [int(index) for index in np.linspace(0, total_frames - 1, count)]


def check_file(path: Path) -> None:
    """Raise a `VideoError` for a file that is missing or empty."""
    if not path.is_file():
        raise VideoError(path, "the file does not exist")
    if path.stat().st_size == 0:
        raise VideoError(path, "the file is empty (0 bytes); fetch it again")


def open_video(path: Path, formats: str | None = None) -> tuple[InputContainer, VideoStream]:
    """Open a file: its container, which the caller closes, and its first video stream that is no picture of a cover.

    Args:
        formats: names of the container formats that may be read, with commas between; None allows all.

    Raises:
        VideoError: not a video, or no video stream.
    """
    try:
        container = av.open(str(path), options={"format_whitelist": formats} if formats else {})
    except av.FFmpegError as error:
        raise VideoError(path, f"cannot be opened as a video ({error.strerror}); fetch or encode it again") from error
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            return container, stream
    container.close()
    raise VideoError(path, "has no video stream")


def _stated_seconds(stream: VideoStream) -> Fraction | None:
    """Return the duration that the container states of a stream, None where it states none."""
    return stream.duration * stream.time_base if stream.duration is not None and stream.time_base else None


def packet_spans(path: Path, container: InputContainer, stream: VideoStream) -> Iterator[tuple[int, Fraction]]:
    """Yield after each packet with data the packets so far and the seconds that they span.

    The last pair is what decoding will most likely give, without its cost.
    """
    count, first, end = 0, math.inf, -math.inf
    for packet in _packets(path, container, stream):
        if packet.size:
            count += 1
            if packet.pts is not None:
                first, end = min(first, packet.pts), max(end, packet.pts + (packet.duration or 0))
            yield count, Fraction(end - first) * Fraction(stream.time_base or 0) if end >= first else Fraction(0)


def decoded_frames(path: Path, container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """Yield every frame that decodes, in presentation order; a damaged packet gives none."""
    for packet in _packets(path, container, stream):
        try:
            frames = packet.decode()
        except av.InvalidDataError:
            continue
        except av.FFmpegError as error:
            raise VideoError(path, f"cannot be decoded ({error.strerror}); encode it again") from error
        yield from frames


def _packets(path: Path, container: InputContainer, stream: VideoStream) -> Iterator[Packet]:
    """Yield the packets of a stream up to the end of the file, or to where it is damaged."""
    try:
        yield from container.demux(stream)
    except av.InvalidDataError:
        return
    except av.FFmpegError as error:
        raise VideoError(path, f"cannot be read ({error.strerror}); fetch or encode it again") from error


def _decode(path: Path, wanted: frozenset[int], max_pixels: int) -> _Pass:
    """Decode all frames, keep those whose position is wanted."""
    images: list[np.ndarray] = []
    times: list[Fraction] = []
    size: tuple[int, int] | None = None
    total, untimed, end = 0, False, Fraction(0)
    first: Fraction | None = None
    container, stream = open_video(path)
    rate = stream.average_rate or stream.guessed_rate or Fraction(25)
    with container:
        for frame in decoded_frames(path, container, stream):
            begin = frame_seconds(frame)
            if total and (begin is None) != untimed:
                raise VideoError(
                    path, f"some of its frames carry a time and some, around {total}, none; encode it again"
                )
            untimed = begin is None
            begin = total / Fraction(rate) if begin is None else begin
            first = begin if first is None else first
            time = begin - first
            shown = frame.duration * frame.time_base if frame.duration and frame.time_base else 1 / Fraction(rate)
            end = max(end, time + shown)
            if total in wanted:
                image = Image.fromarray(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)))
                size = size or _size(image.width, image.height, max_pixels)
                images.append(np.asarray(image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)))
                if times and time < times[-1]:
                    raise VideoError(
                        path, f"frame {total} lies {float(times[-1] - time)} s before an earlier one; encode it again"
                    )
                times.append(time)
            total += 1
    if not total:
        raise VideoError(path, NO_FRAME)
    return _Pass(images, times, total, end)


def frame_seconds(frame: VideoFrame) -> Fraction | None:
    """Return the second of the file's clock at which a frame is shown; None in raw streams, whose rate is constant."""
    return None if frame.pts is None or frame.time_base is None else frame.pts * frame.time_base


def _size(width: int, height: int, max_pixels: int) -> tuple[int, int]:
    """Return width and height after shrinking to at most `max_pixels`, each side truncated; no rounding to a grid."""
    if width * height <= max_pixels:
        return width, height
    ratio = math.sqrt(max_pixels / (width * height))
    return max(1, int(width * ratio)), max(1, int(height * ratio))
