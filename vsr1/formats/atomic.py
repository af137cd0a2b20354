"""Files that appear whole or not at all: written beside their place under another name, then moved there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

BLOCK_BYTES = 64 * 1024


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A path to write to; it becomes `target` when the block ends without an error, and is gone otherwise.

    The folder is made if it is missing. The path ends like `target`, for writers that go by the extension.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{uuid4().hex}.part-{target.name}")
    try:
        yield part
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def write_lines(target: Path, rows: Iterable[dict[str, Any]]) -> None:
    """UTF-8 JSON lines."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with replacing(target) as part:
        part.write_text(text, encoding="utf-8")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows that `write_lines` wrote; a text in them may hold any separator of lines but the line feed."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def write_json(target: Path, value: Any) -> None:
    """One JSON value, indented by two."""
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
