"""Frames of a video as one small picture: side by side in a row, compressed so that a page of many videos stays small.

The row is to scale: frame i stands for the i-th of `MOST_FRAMES` equal parts of the video and is the frame nearest to
that part's middle, so a time axis as wide as the row fits under it.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

MOST_FRAMES = 12
LONGEST_SIDE = 96  # pixels; larger frames are scaled down, smaller ones kept as they are
ALL_BYTES = 40_000_000  # of all films of a page, before base64
MOST_BYTES = 24_000  # of one film
QUALITIES = ((85, 1), (75, 1), (60, 1), (45, 1), (30, 1), (20, 1), (10, 1), (20, 2), (10, 4))
"""Quality of WebP and how much smaller the frames become; the first that fits is taken."""


@dataclass(frozen=True)
class Film:
    """One picture of `count` frames: base64 WebP, the size of a frame in pixels, the video's length in seconds."""

    base64: str
    count: int
    width: int
    height: int
    seconds: float


def bytes_of_a_film(videos: int) -> int:
    """Return how many bytes one of so many films may take."""
    return min(MOST_BYTES, ALL_BYTES // max(1, videos))


def film_of(video_id: str, pixels: np.ndarray, seconds: np.ndarray, most_bytes: int = MOST_BYTES) -> Film:
    """Put up to `MOST_FRAMES` frames of a clip into one picture, in the best quality that fits `most_bytes`.

    Args:
        pixels: [T, H, W, 3] uint8, RGB.
        seconds: [T], the time of each frame.

    Raises:
        ValueError: no frames, or arrays of another shape or type; names the video.
    """
    if pixels.ndim != 4 or pixels.shape[-1] != 3 or pixels.dtype != np.uint8 or not pixels.size:
        raise ValueError(
            f"report: frames of video {video_id!r} are {pixels.dtype} {pixels.shape}; expected uint8 [T, H, W, 3]"
        )
    if seconds.shape != pixels.shape[:1]:
        raise ValueError(f"report: video {video_id!r} has {len(pixels)} frames but times of shape {seconds.shape}")
    length = _length(seconds)
    count = min(MOST_FRAMES, len(pixels))
    middles = (np.arange(count) + 0.5) * length / count
    nearest = np.abs(seconds[None, :] - middles[:, None]).argmin(axis=1)
    frames = [Image.fromarray(pixels[index]) for index in nearest]
    for frame in frames:
        frame.thumbnail((LONGEST_SIDE, LONGEST_SIDE))  # a smaller one stays as it is
    width, height = frames[0].size
    picture = whole = Image.fromarray(np.concatenate([np.asarray(frame) for frame in frames], axis=1))
    for quality, smaller in QUALITIES:
        if smaller > 1:
            picture = whole.resize((max(1, width // smaller) * count, max(1, height // smaller)))
        buffer = io.BytesIO()
        picture.save(buffer, "WEBP", quality=quality, method=2)
        if buffer.tell() <= most_bytes:
            break
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Film(data, count, picture.width // count, picture.height, round(length, 3))


def _length(seconds: np.ndarray) -> float:
    """Return a clip's length: its last frame's time and an interval between frames beyond it, 1 s for one frame."""
    return float(seconds[-1]) + (float(np.median(np.diff(seconds))) if len(seconds) > 1 else 1.0)
