"""Says whether a file from somebody else may become a video of the library, before a frame of it is kept.

Run it in a process with limits of its own (`pipelines/serve/library/sandbox.py`): what a file states of itself is
checked here, what it hides shows only when it is decoded.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vsr1.video.decode import NO_FRAME, VideoError, check_file, decoded_frames, open_video, packet_spans

# By the first name that FFmpeg gives a container. Playlists and lists of files are none of them: they name other files.
MEDIA_TYPES = {"mov": "video/mp4", "matroska": "video/x-matroska", "avi": "video/x-msvideo"}
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


def check_video(path: Path, limits: VideoLimits) -> str:
    """Read every packet of a file, decode one frame and return the file's media type.

    Raises:
        RefusedVideoError: `not_a_video`, `too_many_pixels`, `too_many_frames` or `too_long`.
    """
    try:
        check_file(path)
        container, stream = open_video(path, FORMATS)
        with container:
            media_type = MEDIA_TYPES[container.format.name.split(",")[0]]
            if stream.width * stream.height > limits.pixels:
                size = f"frames of {stream.width}x{stream.height} pixels"
                raise RefusedVideoError("too_many_pixels", f"{size}; serve.upload.max_pixels={limits.pixels} are taken")
            # By the packets, not by what the header says, and only so far as the limits go.
            for count, seconds in packet_spans(path, container, stream):
                if count > limits.frames:
                    raise RefusedVideoError(
                        "too_many_frames", f"the video has more than serve.upload.max_frames={limits.frames} frames"
                    )
                if seconds > limits.seconds:
                    raise RefusedVideoError(
                        "too_long", f"the video is longer than serve.upload.max_seconds={limits.seconds:g}"
                    )
        container, stream = open_video(path, FORMATS)
        with container:
            if next(decoded_frames(path, container, stream), None) is None:
                raise VideoError(path, NO_FRAME)
    except VideoError as error:
        raise RefusedVideoError("not_a_video", f"the file is not a video that can be used: {error.reason}") from error
    return media_type
