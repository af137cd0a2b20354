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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Literal

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image

Sampling = Literal["time", "legacy"]
NO_FRAME = "not one frame of it decodes; the file is truncated or damaged, fetch it again"
STATING = ("mov", "matroska", "avi", "asf", "flv")  # containers whose header holds a length; others are estimates
PICTURES = Disposition.attached_pic | Disposition.timed_thumbnails  # covers and previews
TOLERANCE_SECONDS = 1.0  # that a length may differ from what is said of it
TOLERANCE_SHARE = 0.02  # of the length that is said, where that is more
JITTER = Fraction(1, 4)  # second that a frame may lie before an earlier one, if it is on for so long
ROUNDING = Fraction(1, 1000)  # second; Matroska has no finer clock


class VideoError(ValueError):
    """A video file that cannot be used; the message names the file and the reason, `step` says where it showed."""

    def __init__(self, path: Path, reason: str, step: str = "decode") -> None:
        super().__init__(f"video {printable(path)}: {reason}")
        self.path = path
        self.reason = reason
        self.step = step

    def __reduce__(self) -> tuple[type[VideoError], tuple[Path, str, str]]:
        return VideoError, (self.path, self.reason, self.step)


def printable(path: Path) -> str:
    """Return a path as text that can be printed, also where its bytes are no UTF-8."""
    return str(path).encode("utf-8", "backslashreplace").decode()


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


@dataclass
class Shown:
    """The pictures of a file, of its packets or decoded: when each begins, in order, and when the last one ends.

    All are seconds of the file's own clock. `reach` is the end of any stream, sound too.
    """

    times: list[Fraction] = field(default_factory=list)
    end: Fraction = Fraction(0)
    reach: Fraction = Fraction(0)
    fault: str = ""  # why the file cannot be read to its end
    is_cut: bool = False  # a box of an MP4 file in fragments, whose header states no length, is not whole

    def add(self, begin: Fraction, seconds: Fraction) -> None:
        """Add a picture; the end of the first one is the first end."""
        self.end = max(self.end, begin + seconds) if self.times else begin + seconds
        self.times.append(begin)


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


def check_file(path: Path) -> None:
    """Raise a `VideoError` for a file that is missing or empty."""
    if not path.is_file():
        raise VideoError(path, "the file does not exist")
    if path.stat().st_size == 0:
        raise VideoError(path, "the file is empty (0 bytes); fetch it again")


def open_video(path: Path, formats: str | None = None) -> tuple[InputContainer, VideoStream]:
    """Open a file: its container, which the caller closes, and the video stream that players show.

    Args:
        formats: names of the container formats that may be read, with commas between; None allows all.

    Raises:
        VideoError: not a video, or no video stream.
    """
    try:
        options = {"format_whitelist": formats} if formats else {}
        container = av.open(str(path), options=options, metadata_errors="replace")
    except av.FFmpegError as error:
        raise VideoError(path, f"cannot be opened as a video ({error.strerror}); fetch or encode it again") from error
    streams = [stream for stream in container.streams.video if not stream.disposition & PICTURES]
    if not streams:
        container.close()
        raise VideoError(path, "has no video stream")
    best = container.streams.best("video")
    return container, next((stream for stream in streams if best and stream.index == best.index), streams[0])


def stated_lengths(container: InputContainer, stream: VideoStream) -> tuple[Fraction | None, Fraction | None]:
    """Return the seconds of the pictures that the header states, and the second at which the last stream ends."""
    if container.format.name.split(",")[0] not in STATING:
        return None, None
    pictures = stream.duration * stream.time_base if stream.duration is not None and stream.time_base else None
    return pictures, None if container.duration is None else Fraction(container.duration, av.time_base)


def zero_of(container: InputContainer, stream: VideoStream, first: Fraction) -> Fraction:
    """Return the second of a file's clock that players call 0: where its first stream begins, but not below 0.

    Args:
        first: when the first picture of `stream` begins; AVI holds no such times, and FFmpeg's start is not that.
    """
    is_avi = container.format.name == "avi"
    streams = [one for one in container.streams if one.type in ("video", "audio") and not (is_avi and one is stream)]
    begins = [one.start_time * one.time_base for one in streams if one.start_time is not None and one.time_base]
    return min([first, *(max(begin, Fraction(0)) for begin in begins)])


def read_packets(
    path: Path,
    container: InputContainer,
    stream: VideoStream,
    watch: Callable[[int, Fraction], None] | None = None,
) -> Shown:
    """Read every packet of all streams, which costs much less than to decode them; a container is read once.

    Args:
        watch: called with the pictures so far and the seconds that they span.
    """
    shown, rate = Shown(), _rate(stream)
    try:
        for packet in container.demux():
            tick = packet.pts if packet.pts is not None else packet.dts
            base = packet.time_base
            if tick is not None and base:
                shown.reach = max(shown.reach, (tick + (packet.duration or 0)) * base)
            if packet.stream_index != stream.index or not packet.size or packet.is_discard:
                continue
            begin = tick * base if tick is not None and base else len(shown.times) / rate
            shown.add(begin, packet.duration * base if packet.duration and base else 1 / rate)
            if watch:
                watch(len(shown.times), shown.end - min(shown.times[0], begin))
    except av.InvalidDataError as error:
        shown.fault = f"cannot be read on after {float(shown.reach):.1f} s ({error.strerror}); fetch it again"
    except av.FFmpegError as error:
        raise VideoError(path, f"cannot be read ({error.strerror}); fetch or encode it again") from error
    shown.times.sort()
    shown.is_cut = container.format.name.startswith("mov") and not stream.frames and _ends_in_a_box(path)
    return shown


def _ends_in_a_box(path: Path) -> bool:
    """Return whether an MP4 file is shorter than the boxes in it, each of which begins with its bytes and its name."""
    place, size = 0, path.stat().st_size
    with path.open("rb") as file:
        while place < size:
            file.seek(place)
            head = file.read(16)
            length = int.from_bytes(head[:4], "big")
            length = int.from_bytes(head[8:], "big") if length == 1 else length or size - place
            place += max(length, 8)
    return place > size


def decoded_frames(path: Path, container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """Yield every frame that decodes, in presentation order; a damaged packet gives none.

    Where the file cannot be read on, the frames end: `read_packets` says so.

    Raises:
        VideoError: a codec that cannot be decoded, or a file that the system does not read.
    """
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.InvalidDataError:
            return
        except av.FFmpegError as error:
            raise VideoError(path, f"cannot be read ({error.strerror}); fetch or encode it again") from error
        if packet is None:
            return
        try:
            frames = packet.decode()
        except av.InvalidDataError:
            continue
        except av.FFmpegError as error:
            raise VideoError(path, f"cannot be decoded ({error.strerror}); encode it again") from error
        yield from frames


def timed_frames(
    path: Path, container: InputContainer, stream: VideoStream
) -> Iterator[tuple[Fraction, Fraction, VideoFrame]]:
    """Yield every frame with the second of the file's clock at which it begins, and the seconds that it is on.

    Raises:
        VideoError: as `decoded_frames`, some frames have no time, or one lies before an earlier one.
    """
    rate, before = _rate(stream), None
    is_untimed = False
    for number, frame in enumerate(decoded_frames(path, container, stream)):
        begin = None if frame.pts is None or frame.time_base is None else frame.pts * frame.time_base
        if before is not None and (begin is None) != is_untimed:
            raise VideoError(path, f"some of its frames carry a time and some, around {number}, none; encode it again")
        is_untimed = begin is None
        begin = number / rate if begin is None else begin  # raw streams have a constant rate
        seconds = frame.duration * frame.time_base if frame.duration and frame.time_base else 1 / rate
        before = begin if before is None else before
        if before - begin > min(seconds, JITTER):
            back = float(before - begin)
            raise VideoError(path, f"frame {number} lies {back:g} s before an earlier one; encode it again")
        before = max(begin, before)
        yield before, seconds, frame


def upright(frame: VideoFrame) -> np.ndarray:
    """Return the pixels of a frame as a player turns and mirrors them: uint8 [H, W, 3], RGB.

    The display matrix of the container takes x and y of a pixel, counted right and down, to (ax + cy, bx + dy).
    """
    pixels = frame.to_ndarray(format="rgb24")
    matrix = _display_matrix(frame)
    if matrix is None:
        return pixels
    (a, b), (c, d) = matrix
    if abs(b) > abs(a):
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def shown_size(frame: VideoFrame, stream: VideoStream) -> tuple[int, int]:
    """Return width and height at which a player shows a frame, with square pixels: the shorter side is stretched."""
    aspect, matrix = Fraction(stream.sample_aspect_ratio or 1), _display_matrix(frame)
    width, height = int(frame.width * max(aspect, Fraction(1))), int(frame.height / min(aspect, Fraction(1)))
    is_turned = matrix is not None and abs(matrix[0][1]) > abs(matrix[0][0])
    return (height, width) if is_turned else (width, height)


def _display_matrix(frame: VideoFrame) -> list[list[int]] | None:
    side_data = frame.side_data.get("DISPLAYMATRIX")
    return None if side_data is None else np.frombuffer(bytes(side_data), np.int32).reshape(3, 3)[:2, :2].tolist()


def _rate(stream: VideoStream) -> Fraction:
    return Fraction(stream.average_rate or stream.guessed_rate or 25)


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
                size = size or _size(*shown_size(frame, stream), max_pixels)
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
    if packets.is_cut:
        return f"it ends at {float(shown.end):.1f} s in the middle of a fragment: {remedy}"
    reach = max(packets.reach, shown.end)
    if last is not None and last - reach > _tolerance(last):
        return f"it ends at {float(reach):.1f} s, its container says {float(last):.1f} s: {remedy}"
    if packets.fault and pictures is None and last is None:
        return packets.fault
    for begin, end in pairwise([*shown.times, max(shown.end, packets.end)]):
        lost = bisect_left(packets.times, end) - bisect_right(packets.times, begin)
        if lost > 1 and end - begin > _tolerance(packets.end):
            return f"the {lost} pictures from {float(begin):.1f} to {float(end):.1f} s do not decode; fetch it again"
    return ""


def _tolerance(stated: float | Fraction) -> float:
    return max(TOLERANCE_SECONDS, TOLERANCE_SHARE * float(stated))


def _size(width: int, height: int, max_pixels: int) -> tuple[int, int]:
    """Return width and height after shrinking to at most `max_pixels`, each side truncated; no rounding to a grid."""
    if width * height <= max_pixels:
        return width, height
    ratio = math.sqrt(max_pixels / (width * height))
    return max(1, int(width * ratio)), max(1, int(height * ratio))
