"""Draw toy films and encode them as H.264; the same film always gives the same frames."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import av
import numpy as np

from vsr1.toy.world import Event, Film

SIDE = 64  # pixels
FRAMES_PER_SECOND = 4
RADIUS = 11.0  # pixels
SPEED = 10.0  # pixels a second
START_SPREAD = 10.0  # pixels from the middle of the screen, where a shape starts
BACKGROUND = 45  # grey: a film must not be told by its background
_COLOURS = {
    "red": (225, 35, 35), "green": (40, 175, 50), "blue": (45, 80, 235), "yellow": (240, 220, 40),
    "purple": (170, 45, 210), "white": (245, 245, 245),
}  # fmt: skip
_CODEC = {"crf": "16", "threads": "1", "bf": "0", "preset": "veryfast"}
_GRID = np.arange(SIDE, dtype=np.float32)


def render(film: Film, times: np.ndarray) -> np.ndarray:
    """Draw the frames at `times` (seconds [T]): uint8 [T, 64, 64, 3]."""
    rng = np.random.default_rng(film.seed)
    places = SIDE / 2 + rng.uniform(-START_SPREAD, START_SPREAD, (len(film.events), 2))
    frames = np.full((len(times), SIDE, SIDE, 3), BACKGROUND, np.uint8)
    for event, place in zip(film.events, places, strict=True):
        inside = np.flatnonzero((times >= event.start) & ((times < event.end) | (event is film.events[-1])))
        if len(inside):
            mask = _mask(event, place, (times[inside] - event.start).astype(np.float32))
            frames[inside] = np.where(mask[..., None], np.array(_COLOURS[event.colour], np.uint8), frames[inside])
    return frames


def encode_mp4(film: Film, path: Path) -> None:
    """Write the film as `write_mp4` does."""
    times = np.arange(film.duration * FRAMES_PER_SECOND) / FRAMES_PER_SECOND
    write_mp4(render(film, times), path, FRAMES_PER_SECOND)


def write_mp4(frames: Iterable[np.ndarray], path: Path, rate: int) -> None:
    """Write frames, uint8 [64, 64, 3] each, as H.264 in an MP4 file whose bytes repeat.

    One thread, and no B-frames: with them, libx264 encodes these small frames in one of several ways from call to call.

    Args:
        rate: frames per second.
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options=_CODEC)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def _mask(event: Event, place: np.ndarray, elapsed: np.ndarray) -> np.ndarray:
    """Return the pixels of the shape, bool [T, 64, 64]; the screen wraps around."""
    x, y = np.full_like(elapsed, place[0]), np.full_like(elapsed, place[1])
    radius = np.full_like(elapsed, RADIUS)
    if event.motion in ("left", "right"):
        x = x + elapsed * (SPEED if event.motion == "right" else -SPEED)
    elif event.motion in ("up", "down"):
        y = y + elapsed * (SPEED if event.motion == "down" else -SPEED)
    else:
        radius = RADIUS + 5.5 * np.sin(elapsed * 2.1)
    half = SIDE / 2
    dx = ((_GRID[None] - x[:, None] + half) % SIDE - half)[:, None, :]
    dy = ((_GRID[None] - y[:, None] + half) % SIDE - half)[:, :, None]
    r = radius[:, None, None]
    squared = dx**2 + dy**2
    if event.shape == "circle":
        return squared < r**2
    if event.shape == "ring":
        return (squared < r**2) & (squared > (0.55 * r) ** 2)
    if event.shape == "square":
        return np.maximum(np.abs(dx), np.abs(dy)) < 0.88 * r
    if event.shape == "cross":
        return (np.minimum(np.abs(dx), np.abs(dy)) < 0.3 * r) & (np.maximum(np.abs(dx), np.abs(dy)) < r)
    return (np.abs(dy) < 0.9 * r) & (np.abs(dx) < (dy + 0.9 * r) * 0.55)
