"""Writes a part of a video as a file of its own, from one second to another, for any player.

H.264 in MP4, pictures without sound. It is encoded again, so it can begin between two key frames; the picture that is
on when it begins is its first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain, count, pairwise
from pathlib import Path

import av
import numpy as np
from av.video.frame import VideoFrame

from vsr1.video.decode import NO_FRAME, VideoError, decoded_frames, frame_seconds, open_video

TICKS = 90_000  # a second
# No B-frames and no look-ahead: each picture gives its packet at once, so that its length can be set.
_ENCODER = {"crf": "20", "preset": "veryfast", "tune": "zerolatency", "bf": "0"}


def write_excerpt(source: Path, target: Path, start: float, end: float) -> None:
    """Write the pictures shown from `start` up to `end`, in seconds after the first frame of `source`.

    Raises:
        VideoError: a file that does not decode.
    """
    pictures = _pictures(source, start, end, seek=True)
    first = next(pictures, None)
    if first is None or first[0] > start:  # the file's index leads past the place
        pictures = _pictures(source, start, end, seek=False)
        first = next(pictures, None)
    if first is None:
        raise VideoError(source, NO_FRAME)
    with av.open(str(target), "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=30, options=_ENCODER)
        shape = _upright(first[1])
        stream.width, stream.height = (max(2, side // 2 * 2) for side in (shape.width, shape.height))
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, TICKS)
        for (time, frame), (until, _) in pairwise(chain([first], pictures, [(end, first[1])])):
            picture = _upright(frame).reformat(width=stream.width, height=stream.height, format="yuv420p")
            picture.pts, picture.time_base = _ticks(time - start), Fraction(1, TICKS)
            for packet in stream.encode(picture):
                packet.duration = _ticks(until - start) - _ticks(time - start)
                output.mux(packet)
        output.mux(stream.encode())


def _pictures(path: Path, start: float, end: float, *, seek: bool) -> Iterator[tuple[float, VideoFrame]]:
    """Yield frames with the second from which each is shown; the one that is on at `start` counts from there."""
    container, stream = open_video(path)
    rate = stream.average_rate or stream.guessed_rate or Fraction(25)
    with container:
        frames = decoded_frames(path, container, stream)
        opening = next(frames, None)
        if opening is None:
            return
        begin = frame_seconds(opening)
        if seek and begin is not None and stream.time_base:
            container.seek(int((begin + Fraction(start)) / stream.time_base), stream=stream)
            frames = decoded_frames(path, container, stream)
        else:
            frames = chain([opening], frames)
        on: VideoFrame | None = None
        time = -math.inf
        for number, frame in zip(count(), frames, strict=False):
            at, before = frame_seconds(frame), time
            time = float(number / rate if at is None else at - (begin or 0))
            if time < before:
                raise VideoError(path, f"a frame at {time:g} s lies before an earlier one; encode it again")
            if time >= end:
                break
            if time <= start:
                on = frame
                continue
            if on is not None:
                yield start, on
                on = None
            yield time, frame
        if on is not None:
            yield start, on


def _upright(frame: VideoFrame) -> VideoFrame:
    """Return a frame as a player shows it."""
    if not frame.rotation:
        return frame
    turned = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
    return VideoFrame.from_ndarray(np.ascontiguousarray(turned), format="rgb24")


def _ticks(seconds: float) -> int:
    return round(seconds * TICKS)
