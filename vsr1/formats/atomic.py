"""Files and folders that appear whole or not at all: written beside their place under another name, then renamed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

BLOCK_BYTES = 64 * 1024


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield a path to write to; it becomes `target` when the block ends without an error, and is gone otherwise.

    The folder is made if it is missing. The path has the extension of `target`, for writers that go by it, and not its
    name, which may be as long as a name can be.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{uuid4().hex}.part-{target.suffix}")
    try:
        yield part
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def part_folder(target: Path) -> Path:
    """Return the folder that is written to while `replacing_folder(target)` is open."""
    return target.with_name(f".part-{target.name}")


def whole_folder(part: Path) -> Path:
    """Return the folder that the one of `part_folder` becomes."""
    return part.with_name(part.name.removeprefix(".part-"))


@contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder to write to; it becomes `target` when the block ends without an error, else it is gone.

    What is written is on the disk before it gets its name. One writer at a time. What a killed writer left is cleared
    by the next one: its part is removed, and a `target` that it was about to replace is back in its place.
    """
    part, old = part_folder(target), target.with_name(f".old-{target.name}")
    if old.exists() and not target.exists():
        os.rename(old, target)
    for leftover in (part, old):
        _remove(leftover)
    part.mkdir(parents=True)
    try:
        yield part
        _flush(part)
        if target.exists():
            os.rename(target, old)  # a folder that is not empty cannot be replaced in one step
        os.rename(part, target)
    finally:
        _remove(part)
    _remove(old)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _flush(folder: Path) -> None:
    """Bring everything in a folder, its names included, to the disk."""
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def json_line(row: dict[str, Any]) -> bytes:
    """Return a row as a line of JSON in UTF-8; with a path of other bytes in it in ASCII with escapes."""
    try:
        return json.dumps(row, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(row).encode() + b"\n"


def write_lines(target: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as UTF-8 JSON lines."""
    content = b"".join(map(json_line, rows))
    with replacing(target) as part:
        part.write_bytes(content)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the rows that `write_lines` wrote; a text in them may hold any separator of lines but the line feed."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def write_json(target: Path, value: Any) -> None:
    """Write one JSON value, indented by two."""
    with replacing(target) as part:
        part.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def cut_torn_line(path: Path) -> None:
    """Cut off what follows the last line feed of a file, which a killed writer leaves; a missing file stays missing."""
    if not path.exists():
        return
    with path.open("r+b") as lines:
        end = lines.seek(0, 2)
        while end > 0:
            start = max(0, end - BLOCK_BYTES)
            lines.seek(start)
            place = lines.read(end - start).rfind(b"\n")
            if place >= 0:
                lines.truncate(start + place + 1)
                return
            end = start
        lines.truncate(0)
