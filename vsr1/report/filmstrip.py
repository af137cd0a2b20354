"""Frames of a clip as thumbnails inside the page: data URIs, so that the page needs no other file."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

MOST_FRAMES = 12
LONGEST_SIDE = 160  # pixels; larger frames are scaled down, smaller ones kept as they are
PIXELATED_BELOW = 97  # pixels; frames this small are enlarged by the browser without blurring


@dataclass(frozen=True)
class Thumbnail:
    """One frame: JPEG data URI, its time in seconds and its size in pixels."""

    uri: str
    seconds: float
    width: int
    height: int

    @property
    def pixelated(self) -> bool:
        return max(self.width, self.height) < PIXELATED_BELOW


def thumbnails(video_id: str, pixels: np.ndarray, seconds: np.ndarray) -> list[Thumbnail]:
    """Up to `MOST_FRAMES` frames spread evenly over a clip, the first and the last included.

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
    chosen = np.linspace(0, len(pixels) - 1, min(MOST_FRAMES, len(pixels))).round().astype(int)
    return [_thumbnail(pixels[index], float(seconds[index])) for index in chosen]


def _thumbnail(frame: np.ndarray, seconds: float) -> Thumbnail:
    image = Image.fromarray(frame)
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85, subsampling=0)
    uri = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    return Thumbnail(uri, seconds, image.width, image.height)
