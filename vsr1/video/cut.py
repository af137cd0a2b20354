"""Whether a file ends in the middle of a piece of its container: all that shows of a cut where no header has a length.

Pieces say how long they are, so the last one that begins is looked at: a box of an MP4 file in fragments, the data of
ASF (WMV), a page of Ogg, a packet of an MPEG program stream. Those of a transport stream have one size. A cut between
two pieces, which all of these but ASF allow, cannot be seen.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

TAIL = 1 << 18  # bytes at the end in which the last piece begins; the longest, a page of Ogg, has 65,307
SYNC = 0x47  # first byte of each packet of a transport stream
SYNCED = 5  # packets in a row that are no accident


def is_cut(path: Path, container: str) -> bool:
    """Return whether a file ends in the middle of a piece.

    Args:
        container: first name that FFmpeg has for it; of containers that are not listed here nothing is known.
    """
    look = _LOOKS.get(container)
    if look is None:
        return False
    with path.open("rb") as file:
        return look(file, os.fstat(file.fileno()).st_size)


def _boxes(file: BinaryIO, size: int) -> bool:
    """MP4: a box begins with its bytes (0: up to the end, 1: they follow the name) and its name."""
    place = 0
    while place < size:
        file.seek(place)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        length = int.from_bytes(head[8:], "big") if length == 1 else length or size - place
        place += max(length, 8)
    return place > size


def _asf(file: BinaryIO, size: int) -> bool:
    """ASF: an object begins with 16 bytes of name and its bytes; the data follow the header, 50 bytes if not known."""
    header = int.from_bytes(file.read(24)[16:], "little")
    file.seek(min(header + 16, size))
    return header + int.from_bytes(file.read(8), "little") > size


def _transport_stream(file: BinaryIO, size: int) -> bool:
    """MPEG-TS: 188 bytes a packet, 4 more in front on discs and in cameras, 16 more behind in some broadcasts."""
    head = file.read(SYNCED * 204 + 204)
    for length in (188, 192, 204):
        for start in range(length):
            if all(head[place : place + 1] == bytes([SYNC]) for place in range(start, start + SYNCED * length, length)):
                start -= 4 if length == 192 else 0
                rest = (size - start) % length
                file.seek(size - rest + (4 if length == 192 else 0))
                return rest > 0 and file.read(1) in (b"", bytes([SYNC]))
    return False


def _ogg(file: BinaryIO, size: int) -> bool:
    """Ogg: a page begins with OggS; byte 26 counts the segments, whose sizes follow."""
    _, name, page = _tail(file, size).rpartition(b"OggS\0")
    count = page[21] if len(page) > 21 else 0
    return bool(name) and len(page) < 22 + count + sum(page[22 : 22 + count])


def _program_stream(file: BinaryIO, size: int) -> bool:
    """MPEG-PS: a pack begins with a header of 12 (MPEG-1) or 14 bytes and stuffing; its packets state their bytes."""
    tail = _tail(file, size)
    place = tail.rfind(b"\0\0\1\xba")
    if place < 0 or len(tail) < place + 14:
        return place >= 0
    place += 14 + (tail[place + 13] & 7) if tail[place + 4] >> 6 == 1 else 12
    while tail[place : place + 3] == b"\0\0\1" and tail[place + 3 : place + 4] != b"\xb9":  # which ends the stream
        place += 6 + int.from_bytes(tail[place + 4 : place + 6], "big")
    return place > len(tail)


def _tail(file: BinaryIO, size: int) -> bytes:
    file.seek(max(0, size - TAIL))
    return file.read()


_LOOKS: dict[str, Callable[[BinaryIO, int], bool]] = {
    "mov": _boxes,
    "asf": _asf,
    "mpegts": _transport_stream,
    "ogg": _ogg,
    "mpeg": _program_stream,
}
