"""Reads files of rows as people have them: JSON lines, one JSON list, or CSV with a header; UTF-8 or UTF-16.

A row comes as JSON with the name of its place, so that whoever reads it says what is wrong with it. A file of another
kind is refused in one line that says what it is.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterator
from pathlib import Path

MARKS = {
    codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF32_LE: "utf-32-le", codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be",
}  # fmt: skip  # UTF-32's begins as UTF-16's does
SHOWN = 60  # characters of a line in a message
COLUMNS = {"video", "qid", "desc_id", "vid", "vid_name"}  # one of which a header has
TEXTS = {"video", "vid", "vid_name", "query", "desc", "fig_desc", "cog_desc"}  # texts also where they look like numbers


def utf8_content(path: Path) -> bytes:
    """Return what a text file holds as UTF-8, without the byte order marks of files that were joined in it."""
    content = path.read_bytes()
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), "utf-8")
    if encoding == "utf-8" and content[:2].count(0) == 1:  # UTF-16 without a mark: JSON and CSV begin with ASCII
        encoding = "utf-16-le" if content[1] == 0 else "utf-16-be"
    if encoding != "utf-8":
        content = content.decode(encoding, "replace").encode()
    return content.removeprefix(codecs.BOM_UTF8).replace(b"\n" + codecs.BOM_UTF8, b"\n")


def json_rows(path: Path, refusal: type[ValueError]) -> Iterator[tuple[str, bytes]]:
    """Yield the place of each row ("line 3", "entry 3") and its JSON.

    Raises:
        refusal: a file that is no JSON lines, JSON list or CSV.
    """
    content = utf8_content(path)
    if not content.strip():
        return
    lines = content.split(b"\n")
    first = next(line.strip() for line in lines if line.strip())
    if first[:1] == b"[":
        yield from _entries(path, content, refusal)
    elif any(line.lstrip()[:1] == b"{" for line in lines):
        if first == b"{" and len(content.split()) > 1:
            kind = "one JSON object over several lines" if _is_json(content) else "JSON over several lines"
            raise refusal(f"{path} is {kind}, not one object a line; write each row on a line of its own, or one list")
        yield from ((f"line {number}", line) for number, line in enumerate(lines, start=1) if line.strip())
    elif columns := _columns(first):
        yield from _records(content, columns)
    else:
        shown = first[:SHOWN].decode("utf-8", "backslashreplace")
        raise refusal(
            f"{path} is neither JSON lines nor a JSON list nor CSV with a header; its first line is {shown!r}. Write "
            "one JSON object a line, in UTF-8"
        )


def _entries(path: Path, content: bytes, refusal: type[ValueError]) -> Iterator[tuple[str, bytes]]:
    try:
        entries = json.loads(content)
    except ValueError as error:
        raise refusal(f"{path} begins as a JSON list and is none: {error}; was the file cut off?") from error
    for number, entry in enumerate(entries, start=1):
        yield f"entry {number}", json.dumps(entry).encode()


def _columns(header: bytes) -> tuple[list[str], str] | None:
    """Return the columns of a CSV file and what stands between them, None for a line that is no header."""
    text = header.decode("utf-8", "replace")
    for mark in (",", "\t", ";"):
        names = [name.strip().strip('"') for name in text.split(mark)]
        if len(names) > 1 and COLUMNS & set(names):
            return names, mark
    return None


def _records(content: bytes, columns: tuple[list[str], str]) -> Iterator[tuple[str, bytes]]:
    """Yield the records of CSV; `start` and `end` become `time`, numbers and lists are read as such."""
    names, mark = columns
    reader = csv.reader(content.decode("utf-8", "replace").lstrip().splitlines(keepends=True)[1:], delimiter=mark)
    for values in reader:
        if not values:
            continue
        pairs = zip(names, values, strict=False)
        row = {name: value if name in TEXTS else _value(value) for name, value in pairs}
        if {"start", "end"} <= row.keys():
            row["time"] = [row.pop("start"), row.pop("end")]
        yield f"line {reader.line_num + 1}", json.dumps(row).encode()


def _value(text: str) -> object:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, int | float | list) else text


def _is_json(content: bytes) -> bool:
    try:
        json.loads(content)
    except ValueError:
        return False
    return True
