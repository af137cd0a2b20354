"""Reads shards of a published dataset: the files that make one tar, as one stream, unpacked whole or refused.

Nothing is written before the whole table of contents is known to be sound: an archive that ends early, a size or hash
that is not the manifest's, or a member other than a plain file or folder below the dataset is a `ShardError`. A file
gets its name only when all of it is there.
"""

from __future__ import annotations

import bisect
import fcntl
import hashlib
import io
import json
import lzma
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import Any

from vsr1.formats.atomic import write_json

BLOCK = 1 << 20  # bytes
MARKERS = ".videosearch_shards"  # where the published tool keeps its own


class ShardError(ValueError):
    """A shard that cannot be used; the message names it, the reason and the fix."""


@dataclass(frozen=True)
class Piece:
    """One file of a shard; size in bytes and sha256 where the manifest states them."""

    path: Path
    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Shard:
    """A tar, cut into one or more pieces; size and sha256 are those of the whole."""

    name: str
    pieces: tuple[Piece, ...]
    size: int | None = None
    sha256: str | None = None

    def stored_bytes(self) -> int:
        return sum(piece.path.stat().st_size for piece in self.pieces)

    def marker(self, root: Path) -> Path:
        return root / MARKERS / f"{self.name}.done"

    def faults(self) -> list[str]:
        """Return what shows without reading it: missing pieces, and sizes other than the manifest's."""
        missing = [f"{piece.path} does not exist" for piece in self.pieces if not piece.path.is_file()]
        if missing:
            return missing
        stated = [(piece.path.name, piece.path.stat().st_size, piece.size) for piece in self.pieces]
        stated.append((self.name, self.stored_bytes(), self.size))
        return [
            f"{name} has {size} bytes, the manifest says {wanted}"
            for name, size, wanted in stated
            if wanted not in (None, size)
        ]


class _Pieces(io.RawIOBase):
    """The pieces of a shard as one file that can be read and sought."""

    def __init__(self, paths: list[Path]) -> None:
        self._handles = [path.open("rb") for path in paths]
        self._ends = list(accumulate(path.stat().st_size for path in paths))
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._ends[-1]}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        piece = bisect.bisect_right(self._ends, self._position)
        if piece == len(self._ends):
            return 0
        handle = self._handles[piece]
        handle.seek(self._position - (self._ends[piece - 1] if piece else 0))
        count = handle.readinto(buffer)
        self._position += count
        return count

    def close(self) -> None:
        for handle in self._handles:
            handle.close()
        super().close()


class _StrictMember(tarfile.TarInfo):
    """Where `tarfile` would take a damaged or missing header for the end of the archive, an error."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> _StrictMember:
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the zero block that ends every archive
            raise
        except tarfile.HeaderError as error:
            raise ShardError(f"no sound header at byte {tar.offset} ({error})") from error


def members(shard: Shard) -> dict[str, int]:
    """Return the bytes of each file of a shard by its path below the dataset, from the headers.

    Raises:
        ShardError: the archive is not whole, or a member is not a file or folder below the dataset.
    """
    with _opened(shard) as tar:
        return {_place(member): member.size for member in tar if not member.isdir()}


def unpack(shard: Shard, root: Path) -> dict[str, int]:
    """Put every file of a shard in its place below `root`, then write the marker. What was there is replaced.

    Returns:
        As `members`.

    Raises:
        ShardError: as `members`, or a hash is not the manifest's, or another process is unpacking this shard.
    """
    _check_hashes(shard)
    files = members(shard)
    stage = shard.marker(root).with_suffix(".unpacking")
    with _alone(shard, root):
        if stage.exists():  # of a run that was killed
            shutil.rmtree(stage)
        stage.mkdir(parents=True)
        with _opened(shard) as tar:
            for member in tar:
                place = _place(member)
                if member.isdir():
                    (root / place).mkdir(parents=True, exist_ok=True)
                    continue
                tar.extract(member, stage, filter="data")
                (root / place).parent.mkdir(parents=True, exist_ok=True)
                os.replace(stage / place, root / place)
        shutil.rmtree(stage)
        write_marker(shard, root, files)
    return files


def write_marker(shard: Shard, root: Path, files: dict[str, int]) -> None:
    """Say that the files of a shard are in place, and which these are."""
    write_json(shard.marker(root), {"stored_bytes": shard.stored_bytes(), "files": files})


def read_marker(shard: Shard, root: Path) -> dict[str, Any] | None:
    """Read what `write_marker` wrote; empty for a marker of the published tool, which says nothing; None if none."""
    path = shard.marker(root)
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8").strip()
    return json.loads(text) if text.startswith("{") else {}


def in_place(files: dict[str, int], root: Path) -> bool:
    """Say whether each file is there with its size."""
    return all((root / name).is_file() and (root / name).stat().st_size == size for name, size in files.items())


@contextmanager
def _alone(shard: Shard, root: Path) -> Iterator[None]:
    """Keep every other process off a shard, the workers of a run that was killed included; the lock ends with us."""
    path = shard.marker(root).with_suffix(".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ShardError(
                f"shard {shard.name}: another process is unpacking it into {root}; wait until that has ended"
            ) from error
        yield


@contextmanager
def _opened(shard: Shard) -> Iterator[tarfile.TarFile]:
    """Open a shard as a tar file; whatever of it is unsound while it is open is a `ShardError` that names it."""
    with io.BufferedReader(_Pieces([piece.path for piece in shard.pieces]), BLOCK) as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r:*", tarinfo=_StrictMember) as tar:
                yield tar
        except (tarfile.TarError, ShardError, EOFError, zlib.error, lzma.LZMAError) as error:
            reason = str(error).splitlines()[0]
            raise ShardError(f"shard {shard.name}: {reason}; fetch it again") from error


def _place(member: tarfile.TarInfo) -> str:
    """Return the member's path below the dataset, without `./`."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        raise ShardError(f"member {member.name!r} would be written outside the dataset folder")
    if not (member.isreg() or member.isdir()):
        raise ShardError(f"member {member.name!r} is a link or a device, not a file")
    if path.parts[:1] == (MARKERS,):
        raise ShardError(f"member {member.name!r} would replace a marker of the unpacking")
    return str(path)


def _check_hashes(shard: Shard) -> None:
    """Read the pieces once, where the manifest has a hash."""
    if shard.sha256 is None and not any(piece.sha256 for piece in shard.pieces):
        return
    whole = hashlib.sha256()
    for piece in shard.pieces:
        digest = hashlib.sha256()
        with piece.path.open("rb") as handle:
            while block := handle.read(BLOCK):
                digest.update(block)
                whole.update(block)
        _compare(shard, piece.path.name, digest.hexdigest(), piece.sha256)
    _compare(shard, shard.name, whole.hexdigest(), shard.sha256)


def _compare(shard: Shard, name: str, digest: str, stated: str | None) -> None:
    if stated is not None and digest != stated.lower():
        raise ShardError(
            f"shard {shard.name}: sha256 of {name} is {digest}, the manifest says {stated}; fetch it again"
        )
