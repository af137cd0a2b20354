"""Writes a part of a video as a file of its own, from one second to another, for any player.

H.264 in MP4, pictures without sound. It is encoded again, so it can begin between two key frames; the picture that is
on when it begins is its first. Seconds count as in a clip (`vsr1/video/decode.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import chain, pairwise
from pathlib import Path

import av
import numpy as np
from av.video.frame import VideoFrame

from vsr1.video.container import NO_FRAME, VideoError, open_video, shown_size, timed_frames, upright, zero_of
from vsr1.video.faults import work_on

TICKS = 90_000  # a second
# No B-frames and no look-ahead: each picture gives its packet at once, so that its length can be set.
_ENCODER = {"crf": "20", "preset": "veryfast", "tune": "zerolatency", "bf": "0"}
Picture = tuple[float, VideoFrame, tuple[int, int]]  # second from which it is shown; width and height to show it in


def write_excerpt(source: Path, target: Path, start: float, end: float) -> None:
    """Write the pictures shown from `start` up to `end`, in seconds of the clip's clock.

    Raises:
        VideoError: a file that does not decode.
    """
    with work_on(source, "cut"):
        _write(source, target, start, end)


def _write(source: Path, target: Path, start: float, end: float) -> None:
    pictures = pictures_between(source, start, end)
    first = next(pictures)
    with av.open(str(target), "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=30, options=_ENCODER)
        stream.width, stream.height = (max(2, side // 2 * 2) for side in first[2])
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, TICKS)
        for (time, frame, _), (until, _, _) in pairwise(chain([first], pictures, [(end, *first[1:])])):
            turned = VideoFrame.from_ndarray(np.ascontiguousarray(upright(frame)), format="rgb24")
            picture = turned.reformat(stream.width, stream.height, "yuv420p", threads=1)
            picture.pts, picture.time_base = _ticks(time - start), Fraction(1, TICKS)
            for packet in stream.encode(picture):
                packet.duration = _ticks(until - start) - _ticks(time - start)
                output.mux(packet)
        output.mux(stream.encode())


def pictures_between(source: Path, start: float, end: float) -> Iterator[Picture]:
    """Yield the pictures shown from `start` up to `end`, at least one; the file is entered by seeking.

    Raises:
        VideoError: there is none, or the file does not decode.
    """
    pictures = _pictures(source, start, end, seek=True)
    first = next(pictures, None)
    if first is None or first[0] > start:  # the file's index leads past the place, or there is no picture yet
        pictures = _pictures(source, start, end, seek=False)
        first = next(pictures, None)
    if first is None:
        raise VideoError(source, f"shows no picture from {start:g} to {end:g} s; take another part of it")
    yield first
    yield from pictures


def _pictures(path: Path, start: float, end: float, *, seek: bool) -> Iterator[Picture]:
    """Yield frames with the second from which each is shown; the one that is on at `start` counts from there."""
    container, stream = open_video(path)
    with container:
        opening = next(timed_frames(path, container, stream), None)
        if opening is None:
            raise VideoError(path, NO_FRAME)
        zero = zero_of(container, stream, opening[0])
    container, stream = open_video(path)
    with container:
        if seek and opening[2].pts is not None and stream.time_base:
            container.seek(int((zero + Fraction(start)) / stream.time_base), stream=stream)
        on: Picture | None = None
        for begin, _, frame in timed_frames(path, container, stream):
            time = float(begin - zero)
            if time >= end:
                break
            picture = (max(time, start), frame, shown_size(frame, stream))
            if time <= start:
                on = picture
                continue
            if on is not None:
                yield on
                on = None
            yield picture
        if on is not None:
            yield on


def _ticks(seconds: float) -> int:
    return round(seconds * TICKS)
