"""Clips as H.264 in Matroska: about a tenth of the bytes of raw frames, close to them but not equal.

The frames lose a little (docs/performance.md says how much); what is stored always decodes to the same bytes,
on any machine and with any number of cores: H.264 decoding is exact, and the colour conversion is the bit-exact one.
There is one intra frame and forward prediction only, full colour resolution (4:4:4), so that odd sizes need no padding.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Interpolation

# One thread and no B-frames: with them libx264 encodes small frames in one of several ways from call to call.
_ENCODER = {"crf": "14", "preset": "medium", "bf": "0", "threads": "1"}
_EXACT = (
    Interpolation.BICUBIC
    | Interpolation.ACCURATE_RND
    | Interpolation.BITEXACT
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
)


class CompactError(ValueError):
    """A file that is not a whole compact clip; the message says why."""


def write_frames(path: Path, frames: np.ndarray) -> str:
    """Write RGB frames, uint8 [T, H, W, 3] with T > 0; the same frames give the same file.

    Returns:
        The hash that `read_frames` takes: sha256 over shape and bytes of the frames that the file decodes to.
    """
    with av.open(str(path), "w", format="matroska", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=1, options=_ENCODER)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv444p"
        for image in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv444p", interpolation=_EXACT, threads=1)))
        container.mux(stream.encode())
    decoded = _decode(path)
    if decoded.shape != frames.shape:
        raise CompactError(f"frames {frames.shape} come back as {decoded.shape}; store this clip as npy")
    return frames_digest(decoded)


def read_frames(path: Path, digest: str | None) -> np.ndarray:
    """Read the frames of a file of `write_frames`, in order: uint8 [T, H, W, 3], RGB.

    Raises:
        CompactError: not a video, or not the frames of this digest, which a damaged or shortened file is not.
    """
    frames = _decode(path)
    if frames_digest(frames) != digest:
        raise CompactError(f"its {len(frames)} frames have not the hash of the metadata row")
    return frames


def frames_digest(frames: np.ndarray, *more: np.ndarray) -> str:
    """Return sha256, 64 hexadecimal digits, over the shape of frames and the bytes of all arrays."""
    digest = hashlib.sha256(repr(frames.shape).encode())
    for array in (frames, *more):
        digest.update(array.data)
    return digest.hexdigest()


def _decode(path: Path) -> np.ndarray:
    images = []
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_count = 1  # clips are read by many processes at a time
            for frame in container.decode(stream):
                rgb = frame.reformat(format="rgb24", interpolation=_EXACT, threads=1)
                images.append(rgb.to_ndarray())
    except (av.FFmpegError, IndexError) as error:
        raise CompactError(f"it does not decode: {error}") from error
    if not images:
        raise CompactError("it holds no frame")
    return np.stack(images)
