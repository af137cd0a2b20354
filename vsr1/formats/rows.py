"""Reads files of rows as people have them: JSON lines, one JSON list, or CSV with a header; UTF-8 or UTF-16.

A row comes as JSON with the name of its place, so that whoever reads it says what is wrong with it. A file of another
kind is refused in one line that says what it is.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

MARKS = {
    codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF32_LE: "utf-32-le", codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be",
}  # fmt: skip  # UTF-32's begins as UTF-16's does
SHOWN = 60  # characters of a line in a message
PACKED = {  # how files begin that hold rows, but no text
    b"\x1f\x8b": "compressed by gzip; unpack it", b"\x28\xb5\x2f\xfd": "compressed by zstd; unpack it",
    b"PK\x03\x04": "a ZIP archive or a spreadsheet; unpack it, or save it as CSV in UTF-8",
    b"PAR1": "a Parquet file; write its rows as JSON lines",
}  # fmt: skip
COLUMNS = {"video", "qid", "desc_id", "vid", "vid_name"}  # one of which a header has
TEXTS = {"video", "vid", "vid_name", "query", "desc", "fig_desc", "cog_desc"}  # texts also where they look like numbers


def utf8_content(path: Path, refusal: type[ValueError]) -> bytes:
    """Return what a text file holds as UTF-8, without the byte order marks of files that were joined in it.

    Bytes that are no UTF-8 stay what they are: whoever reads a row names its place.

    Raises:
        refusal: a file that is no text, or no whole UTF-16 or UTF-32.
    """
    content = path.read_bytes()
    if packed := next((kind for begin, kind in PACKED.items() if content.startswith(begin)), None):
        raise refusal(f"{path} is {packed}")
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), "utf-8")
    if encoding == "utf-8" and content[:2].count(0) == 1:  # UTF-16 without a mark: JSON and CSV begin with ASCII
        encoding = "utf-16-le" if content[1] == 0 else "utf-16-be"
    if encoding != "utf-8":
        content = _decoded(path, content, encoding, refusal).encode()
    return content.removeprefix(codecs.BOM_UTF8).replace(b"\n" + codecs.BOM_UTF8, b"\n")


def json_rows(path: Path, refusal: type[ValueError]) -> Iterator[tuple[str, bytes]]:
    """Yield the place of each row ("line 3", "entry 3") and its JSON.

    Raises:
        refusal: a file that is no JSON lines, JSON list or CSV.
    """
    content = utf8_content(path, refusal)
    if not content.strip():
        return
    lines = content.split(b"\n" if b"\n" in content else b"\r")
    first = next(line.strip() for line in lines if line.strip())
    if first[:1] == b"[":
        yield from _entries(path, content, refusal)
    elif any(line.lstrip()[:1] == b"{" for line in lines):
        if first == b"{" and len(content.split()) > 1:
            kind = "one JSON object over several lines" if _is_json(content) else "JSON over several lines"
            raise refusal(f"{path} is {kind}, not one object a line; write each row on a line of its own, or one list")
        yield from ((f"line {number}", line) for number, line in enumerate(lines, start=1) if line.strip())
    elif columns := _columns(first):
        yield from _records(path, content, columns, refusal)
    else:
        shown = first[:SHOWN].decode("utf-8", "backslashreplace")
        raise refusal(
            f"{path} is neither JSON lines nor a JSON list nor CSV with a header; its first line is {shown!r}. Write "
            "one JSON object a line, in UTF-8"
        )


def _entries(path: Path, content: bytes, refusal: type[ValueError]) -> Iterator[tuple[str, bytes]]:
    try:
        entries = json.loads(_decoded(path, content, "utf-8", refusal))
    except (ValueError, RecursionError) as error:
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


def _records(
    path: Path, content: bytes, columns: tuple[list[str], str], refusal: type[ValueError]
) -> Iterator[tuple[str, bytes]]:
    """Yield the records of CSV; `start` and `end` become `time`, numbers and lists are read as such."""
    names, mark = columns
    lines = io.StringIO(_decoded(path, content, "utf-8", refusal), newline="")  # U+2028 and the like end none
    reader = csv.reader(lines, delimiter=mark, strict=True)  # else an open quote takes the rest in
    is_header = True
    try:
        for values in reader:
            if not any(map(str.strip, values)):  # spreadsheets leave such rows
                continue
            if is_header:
                is_header = False
                continue
            if any(map(str.strip, values[len(names) :])):
                raise refusal(
                    f"{path} line {reader.line_num} has {len(values)} fields, the header {len(names)}; put texts that "
                    f"hold {mark!r} between double quotes"
                )
            pairs = zip(names, values, strict=False)
            row = {name: value if name in TEXTS else _value(value) for name, value in pairs}
            if {"start", "end"} <= row.keys():
                row["time"] = [row.pop("start"), row.pop("end")]
            yield f"line {reader.line_num}", json.dumps(row).encode()
    except csv.Error as error:
        raise refusal(f"{path} line {reader.line_num} is no CSV: {error}; is a quote open before it?") from error


def _decoded(path: Path, content: bytes, encoding: str, refusal: type[ValueError]) -> str:
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].decode(encoding, "replace").count("\n") + 1
        raise refusal(
            f"{path} line {line} is no {encoding.upper()} ({error.reason}), as where it was saved in another encoding; "
            "save the file as UTF-8"
        ) from error


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
