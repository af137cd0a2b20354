"""What a video file holds, as players take it: its track, its clock, its packets, and its frames in order.

All seconds are those of the file's own clock; `zero_of` says which of them players call 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from vsr1.video.cut import is_cut

NO_FRAME = "not one frame of it decodes; the file is truncated or damaged, fetch it again"
STATING = ("mov", "matroska", "avi", "asf", "flv")  # containers whose header holds a length; others are estimates
PICTURES = Disposition.attached_pic | Disposition.timed_thumbnails  # covers and previews
LARGEST = 1 << 27  # pixels of a frame, as many as 16K has; a damaged header can ask for more
JITTER = Fraction(1, 4)  # second that a frame may lie before an earlier one, if it is on for so long


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


@dataclass
class Shown:
    """The pictures of a file, of its packets or decoded: when each begins, in order, and when the last one ends.

    All are seconds of the file's own clock. `reach` is the end of any stream, sound too.
    """

    times: list[Fraction] = field(default_factory=list)
    end: Fraction = Fraction(0)
    reach: Fraction = Fraction(0)
    stays: Fraction = Fraction(0)  # up to when a picture stays on by packets without a picture of their own
    fault: str = ""  # why the file cannot be read to its end
    is_cut: bool = False  # the file ends in the middle of a piece, see `vsr1.video.cut`

    def add(self, begin: Fraction, seconds: Fraction) -> None:
        """Add a picture; the end of the first one is the first end."""
        self.end = max(self.end, begin + seconds) if self.times else begin + seconds
        self.times.append(begin)


def check_file(path: Path) -> None:
    """Raise a `VideoError` for a file that is missing or empty."""
    if not path.is_file():
        raise VideoError(path, "the file does not exist")
    if path.stat().st_size == 0:
        raise VideoError(path, "the file is empty (0 bytes); fetch it again")


def open_video(path: Path, formats: str | None = None) -> tuple[InputContainer, VideoStream]:
    """Open a file: its container, which the caller closes, and the video stream that players show.

    It is decoded by one thread, as many processes decode at a time: FFmpeg's own choice is a thread for each core in
    every one of them, and where they are too many the system starts no more.

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
    is_picture = container.format.name.endswith("_pipe") or container.format.name == "image2"
    if is_picture or not streams:
        container.close()
        raise VideoError(path, "is a picture, not a video" if is_picture else "has no video stream")
    best = container.streams.best("video")
    shown = next((stream for stream in streams if best and stream.index == best.index), streams[0])
    shown.thread_count = 1
    return container, shown


def stated_lengths(container: InputContainer, stream: VideoStream) -> tuple[Fraction | None, Fraction | None]:
    """Return the seconds of the pictures that the header states, and the second at which the last stream ends."""
    if container.format.name.split(",")[0] not in STATING:
        return None, None
    pictures = stream.duration * stream.time_base if stream.duration is not None and stream.time_base else None
    if container.format.name == "avi" and pictures is not None:  # FFmpeg shortens what the header says of a cut file
        pictures = max(pictures, stream.frames / _rate(stream))
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
    before: Fraction | None = None
    try:
        for packet in container.demux():
            tick = packet.pts if packet.pts is not None else packet.dts
            base = packet.time_base
            if tick is not None and base:
                shown.reach = max(shown.reach, (tick + (packet.duration or 0)) * base)
            if packet.stream_index != stream.index or packet.is_discard:
                continue
            if not packet.size:
                if tick is not None and base:
                    shown.stays = max(shown.stays, (tick + (packet.duration or 0)) * base)
                continue
            if packet.dts is not None and base:
                if before is not None and before - packet.dts * base > JITTER:
                    shown.fault = f"its clock goes back after {float(before):.1f} s; encode it again"
                before = packet.dts * base
            begin = tick * base if tick is not None and base else len(shown.times) / rate
            shown.add(begin, packet.duration * base if packet.duration and base else 1 / rate)
            if watch:
                watch(len(shown.times), shown.end - min(shown.times[0], begin))
    except av.InvalidDataError as error:
        shown.fault = f"cannot be read on after {float(shown.reach):.1f} s ({error.strerror}); fetch it again"
    except av.FFmpegError as error:
        raise VideoError(path, f"cannot be read ({error.strerror}); fetch or encode it again") from error
    shown.end = max(shown.end, shown.stays)
    shown.times.sort()
    if not (container.format.name.startswith("mov") and stream.frames):  # whose header states a length
        shown.is_cut = is_cut(path, container.format.name.split(",")[0])
    return shown


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
        if not packet.size and packet.dts is not None:  # the picture before stays on, as in Theora and AVI
            continue
        try:
            frames = packet.decode()
        except av.InvalidDataError:
            continue
        except av.FFmpegError as error:
            raise VideoError(path, f"cannot be decoded ({error.strerror}); encode it again") from error
        for frame in frames:
            if frame.width * frame.height > LARGEST:
                raise VideoError(path, f"has frames of {frame.width}x{frame.height} pixels; encode it smaller")
            yield frame


def timed_frames(
    path: Path, container: InputContainer, stream: VideoStream
) -> Iterator[tuple[Fraction, Fraction, VideoFrame]]:
    """Yield every frame with the second of the file's clock at which it begins, and the seconds that it is on.

    Raises:
        VideoError: as `decoded_frames`, some frames have no time, or one lies before an earlier one.
    """
    rate, before = _rate(stream), None
    is_untimed, is_avi = False, container.format.name == "avi"
    for number, frame in enumerate(decoded_frames(path, container, stream)):
        tick = frame.dts if is_avi else frame.pts  # AVI stores no other order than that of decoding
        begin = None if tick is None or frame.time_base is None else tick * frame.time_base
        if is_avi and begin is None and before is not None:  # what the decoder gives behind the last packet
            begin = before + 1 / rate
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
    pixels = frame.to_ndarray(format="rgb24", threads=1)
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
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")  # nine numbers in three rows; perspective and place do not count
    return None if matrix is None else np.frombuffer(bytes(matrix), np.int32).reshape(3, 3)[:2, :2].tolist()


def _rate(stream: VideoStream) -> Fraction:
    return Fraction(stream.average_rate or stream.guessed_rate or 25)
