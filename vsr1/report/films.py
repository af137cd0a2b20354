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

from vsr1.video.clips import Clip

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


def film_of(clip: Clip, most_bytes: int = MOST_BYTES) -> Film:
    """Put up to `MOST_FRAMES` frames of a clip into one picture, in the best quality that fits `most_bytes`."""
    count = min(MOST_FRAMES, len(clip.frames))
    middles = (np.arange(count) + 0.5) * clip.seconds / count
    nearest = np.abs(clip.timestamps[None, :] - middles[:, None]).argmin(axis=1)
    frames = [Image.fromarray(clip.frames[index]) for index in nearest]
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
    return Film(data, count, picture.width // count, picture.height, round(clip.seconds, 3))
