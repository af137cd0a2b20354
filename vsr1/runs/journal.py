"""Journals: files of frames, each a JSON-like value with arrays, written one after another and read back to the last
whole one.

    frame    length (4 bytes), CRC-32 of what follows (4 bytes, both little-endian), zlib of MessagePack

A frame goes out in one write and is not brought to the disk at once: the end of a process loses nothing of it, that of
a machine what came after the last `sync`. What a kill cuts off is no frame; a reader stops there. Nothing that is read
is run as code.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from vsr1.episode.environment import FinishedTurn
from vsr1.video.clips import ClipReference

HEAD = struct.Struct("<II")
_ARRAY, _TURN = 1, 2  # MessagePack types of our own
_NAMES = [field.name for field in fields(FinishedTurn)]


class JournalError(OSError):
    """A frame that could not be written; the file is as it was before it."""


class Journal:
    """Appends frames to a file, which must end with a whole one."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def append(self, frame: dict[str, Any]) -> None:
        """Write a frame.

        Raises:
            JournalError: the disk does not take it.
        """
        data = _framed(frame)
        end = os.fstat(self._file).st_size
        try:
            if os.write(self._file, data) < len(data):
                raise OSError("No space left on device")
        except OSError as error:
            os.ftruncate(self._file, end)
            raise JournalError(f"{self.path} cannot be written: {error.strerror or error}") from error

    def sync(self) -> None:
        """Bring what was written to the disk."""
        os.fsync(self._file)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def write_journal(path: Path, frames: Iterable[dict[str, Any]]) -> None:
    """Write a journal anew."""
    path.write_bytes(b"".join(map(_framed, frames)))


def read_journal(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the frames of a file up to the first that is not whole."""
    data, place = path.read_bytes(), 0
    while place + HEAD.size <= len(data):
        length, checksum = HEAD.unpack_from(data, place)
        payload = data[place + HEAD.size : place + HEAD.size + length]
        if len(payload) < length or zlib.crc32(payload) != checksum:
            return
        yield msgpack.unpackb(zlib.decompress(payload), ext_hook=_unpacked, strict_map_key=False)
        place += HEAD.size + length


def _framed(frame: dict[str, Any]) -> bytes:
    payload = zlib.compress(msgpack.packb(frame, default=_packed), 1)
    return HEAD.pack(len(payload), zlib.crc32(payload)) + payload


def _packed(value: Any) -> msgpack.ExtType:
    if isinstance(value, np.ndarray):
        return msgpack.ExtType(_ARRAY, msgpack.packb((value.dtype.str, value.shape, value.tobytes())))
    if isinstance(value, FinishedTurn):
        clips = [(clip.video_id, clip.content_hash) for clip in value.clips]
        values = [clips if name == "clips" else getattr(value, name) for name in _NAMES]
        return msgpack.ExtType(_TURN, msgpack.packb(values, default=_packed))
    raise TypeError(f"a journal holds no {type(value).__name__}")


def _unpacked(kind: int, data: bytes) -> Any:
    if kind == _ARRAY:
        dtype, shape, numbers = msgpack.unpackb(data)
        return np.frombuffer(numbers, dtype).reshape(shape)
    if kind != _TURN:
        raise ValueError(f"a journal of a later version: it holds values of kind {kind}")
    values = dict(zip(_NAMES, msgpack.unpackb(data, ext_hook=_unpacked), strict=True))
    return FinishedTurn(**values | {"clips": [ClipReference(*clip) for clip in values["clips"]]})
