"""Whether a file ends in the middle of a piece of its container: all that shows of a cut where no header has a length.

Pieces say how long they are, so the last one that begins is looked at: a box of an MP4 file in fragments, the data of
ASF (WMV), a page of Ogg, a packet of an MPEG program stream, a block of live Matroska (WebM) or a tag of FLV. Those of
a transport stream have one size, and GIF has a last byte. A cut between two pieces, which all of these but ASF and GIF
allow, cannot be seen.
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


def _live_matroska(file: BinaryIO, size: int) -> bool:
    """Matroska whose segment states no bytes, as recorders write it: elements begin with their name and their bytes."""
    place = 0
    while place < size:
        file.seek(place)
        head = file.read(12)
        name, length, rest = _element(head)
        if name is None:
            return len(head) < 12
        if name == _SEGMENT and length is not None:
            return False  # its header states a length too
        place += rest if name in (_SEGMENT, _CLUSTER) and length is None else rest + (length or 0)
    return place > size


_SEGMENT, _CLUSTER = b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"


def _element(head: bytes) -> tuple[bytes | None, int | None, int]:
    """Return an EBML element's name, its bytes (None: not known) and where its content begins; no name: it is none."""
    first = 9 - head[0].bit_length()
    if first > 4 or len(head) <= first or not head[first]:
        return None, None, 0
    count = 9 - head[first].bit_length()
    field = head[first : first + count]
    if len(field) < count:
        return None, None, 0
    value = int.from_bytes(field, "big") & ((1 << 7 * count) - 1)
    return head[:first], None if value == (1 << 7 * count) - 1 else value, first + count


def _flv(file: BinaryIO, size: int) -> bool:
    """FLV: a header of 9 bytes, then tags: 4 bytes on the one before, 11 of head with the bytes of the content."""
    place = 9
    while place + 4 < size:
        file.seek(place)
        place += 15 + int.from_bytes(file.read(8)[5:], "big")
    return place > size


def _gif(file: BinaryIO, size: int) -> bool:
    """GIF: the last byte is a semicolon; some writers put zeros behind it."""
    return not _tail(file, size).rstrip(b"\0").endswith(b";")


def _tail(file: BinaryIO, size: int) -> bytes:
    file.seek(max(0, size - TAIL))
    return file.read()


_LOOKS: dict[str, Callable[[BinaryIO, int], bool]] = {
    "mov": _boxes,
    "asf": _asf,
    "mpegts": _transport_stream,
    "ogg": _ogg,
    "mpeg": _program_stream,
    "matroska": _live_matroska,
    "flv": _flv,
    "gif": _gif,
}
