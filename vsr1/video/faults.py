"""Says whose fault an exception is: a video's, which is named and stops nothing, or the machine's, which stops all."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av

from vsr1.video.container import VideoError

OF_MACHINE = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE,
    errno.EAGAIN,  # the system starts no more threads or processes
}  # fmt: skip
OUT_OF_MEMORY = ("OutOfMemoryError", "AcceleratorError")  # of torch, which is not imported here


def is_of_machine(error: BaseException) -> bool:
    """Return whether a full disk, too little memory or the like is at fault, not the file that was worked on.

    FFmpeg is out of memory where a file asks for more than anybody has: that is the file's fault.
    """
    if isinstance(error, MemoryError):
        return not isinstance(error, av.FFmpegError)
    return type(error).__name__ in OUT_OF_MEMORY or (isinstance(error, OSError) and error.errno in OF_MACHINE)


@contextmanager
def work_on(source: Path, step: str = "decode") -> Iterator[None]:
    """Turn whatever one video brings up in the block into a `VideoError` that names it.

    Args:
        step: what the block does, where the exception does not tell.

    Raises:
        VideoError: any exception but those of the machine, which stay what they are.
    """
    try:
        yield
    except VideoError:
        raise
    except Exception as error:
        if is_of_machine(error):
            raise
        raise VideoError(source, *_reason(error, source, step)) from error


def _reason(error: Exception, source: Path, step: str) -> tuple[str, str]:
    """Return in one line why a video cannot be used, and the step in which that showed."""
    if isinstance(error, OSError) and error.filename is not None:
        if str(error.filename) == str(source):
            return f"cannot be read ({error.strerror})", "read"
        return f"its clip cannot be stored ({error.strerror}); give the video another name", "store"
    message = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {message}".encode("utf-8", "backslashreplace").decode(), step
