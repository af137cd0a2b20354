"""Says whether a file from somebody else may become a video of the library, before a frame of it is kept.

Run it in a process with limits of its own (`pipelines/serve/library/sandbox.py`): what a file states of itself is
checked here, what it hides shows only when it is decoded.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from vsr1.video.container import NO_FRAME, VideoError, check_file, decoded_frames, open_video, read_packets
from vsr1.video.faults import work_on

# By the first name that FFmpeg gives a container. Playlists and lists of files are none of them: they name other files.
MEDIA_TYPES = {"mov": "video/mp4", "matroska": "video/x-matroska", "avi": "video/x-msvideo"}
TAKEN = "MP4, MOV, Matroska, WebM and AVI"
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi"


class RefusedVideoError(ValueError):
    """A file that is no video or a larger one than is taken; `code` is for programs."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class VideoLimits:
    """What one source video may have."""

    pixels: int  # of a frame
    frames: int
    seconds: float

    def check(self, frames: int, seconds: Fraction) -> None:
        """Raise a `RefusedVideoError` for more frames or seconds than are taken."""
        if frames > self.frames:
            message = f"the video has more than serve.upload.max_frames={self.frames} frames"
            raise RefusedVideoError("too_many_frames", message)
        if seconds > self.seconds:
            raise RefusedVideoError("too_long", f"the video is longer than serve.upload.max_seconds={self.seconds:g}")


def check_video(path: Path, limits: VideoLimits) -> str:
    """Read every packet of a file, decode one frame and return the file's media type.

    Raises:
        RefusedVideoError: `not_a_video`, `too_many_pixels`, `too_many_frames` or `too_long`.
    """
    try:
        with work_on(path):
            check_file(path)
            container, stream = open_video(path, FORMATS)
            with container:
                media_type = MEDIA_TYPES[container.format.name.split(",")[0]]
                if stream.width * stream.height > limits.pixels:
                    size = f"frames of {stream.width}x{stream.height} pixels"
                    raise RefusedVideoError(
                        "too_many_pixels", f"{size}; serve.upload.max_pixels={limits.pixels} are taken"
                    )
                read_packets(path, container, stream, limits.check)  # by the packets, not by what the header says
            container, stream = open_video(path, FORMATS)
            with container:
                if next(decoded_frames(path, container, stream), None) is None:
                    raise VideoError(path, NO_FRAME)
    except VideoError as error:
        if isinstance(error.__cause__, RefusedVideoError):
            raise error.__cause__ from None
        message = f"the file is not a video that can be used: {error.reason}; {TAKEN} are taken"
        raise RefusedVideoError("not_a_video", message) from error
    return media_type
