"""Frames of a part of a video, which is entered by seeking: a long film is not decoded from its beginning."""

from __future__ import annotations

from bisect import bisect_left
from itertools import chain, pairwise
from math import inf
from pathlib import Path

import numpy as np
from PIL import Image

from vsr1.video.clips import Clip
from vsr1.video.container import upright
from vsr1.video.decode import shrunk_size
from vsr1.video.excerpt import pictures_between
from vsr1.video.faults import work_on


def read_part(
    source: Path, name: str, span: tuple[float, float], *, frames: int, max_pixels: int, length: float
) -> Clip:
    """Return the pictures that are on at seconds spread evenly over a part of a video, as a clip.

    Args:
        name: of the clip.
        span: start and end of the part in seconds of the clip's clock.
        frames: how many, an even number.
        max_pixels: a frame with more is shrunk, bicubic, keeping its aspect.
        length: of the whole video in seconds.

    Raises:
        VideoError: no picture there, or a file that does not decode.
    """
    start, end = span
    times = start + (np.arange(frames) + 0.5) * (end - start) / frames
    images: list[np.ndarray] = []
    with work_on(source):
        pictures = pictures_between(source, start, end)
        first = next(pictures)
        size = shrunk_size(*first[2], max_pixels)
        for (_, frame, _), (until, _, _) in pairwise(chain([first], pictures, [(inf, *first[1:])])):
            count = bisect_left(times, until) - len(images)
            if count > 0:
                image = Image.fromarray(np.ascontiguousarray(upright(frame)))
                image = image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)
                images += [np.asarray(image)] * count
    return Clip.make(name, np.stack(images), times, length)
