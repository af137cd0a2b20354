"""Reads `raw_annotation/<split>.jsonl`: a file is returned whole and checked, or refused with the list of its faults.

No order is changed, and nothing is dropped unless that is asked for: row i of the result is the i-th line that is not
blank, which is what the evaluation index counts (data-eval.md §1.1). A corpus of one's own needs only video, time,
duration and query text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from vsr1.formats.rows import json_rows

LISTED_FAULTS = 20
SAME_SECONDS = 1.0  # by which the durations of one video may differ from row to row


class AnnotationError(ValueError):
    """An annotation file that cannot be used; the message names file, line and field of its first faults."""


class Annotation(BaseModel):
    """One moment of one video and its two captions; all times in seconds of the video.

    `fig_desc` is the query text, `cog_desc` the coarser caption it was made from, `fig_desc_score` its confidence.
    """

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)

    video: str
    time: tuple[float, float]
    desc_id: int
    duration: float
    cog_desc: str
    fig_desc: str
    fig_desc_score: float

    @property
    def qid(self) -> str:
        """Return the id of the query, the join key of every prepared file."""
        return f"{self.desc_id}_fig"


class _Line(Annotation):
    """A line as it stands in the file; `model_fields_set` says what it brought."""

    desc_id: int = -1
    cog_desc: str = ""
    fig_desc_score: float = 1.0


class FaultyRow(BaseModel):
    """A row that was left out: its place in the file, its text, and what is wrong with it."""

    place: str
    text: str
    faults: list[str] = []


def read_annotations(
    path: Path, beyond_duration: Literal["error", "keep"] = "error", dropped: list[FaultyRow] | None = None
) -> list[Annotation]:
    """Read every annotation of a file, in file order; blank lines are passed over.

    Args:
        path: JSON lines, one JSON list or CSV (`vsr1/formats/rows.py`); keys other than the seven are ignored.
            `video`, `time`, `duration` and `fig_desc` are needed. Without `cog_desc` the query text stands in for it,
            without `fig_desc_score` 1.0; where no row has a `desc_id`, rows are numbered from 0.
        beyond_duration: what a moment that begins or ends after the video does. The published files hold such rows
            (up to 15 % of one); "keep" returns them with their times unchanged, and takes several durations of a video.
        dropped: gets the faulty rows. Without it they are an error.

    Raises:
        AnnotationError: no such file, no annotation in it, a file of another kind, or any faulty row: malformed JSON, a
            missing key or wrong type, an impossible moment, an empty video or query, a `desc_id` seen before or one in
            some rows only, or another duration than an earlier row of the video has.
    """
    if not path.is_file():
        raise AnnotationError(f"annotation file {path} does not exist; put the split's annotations there")
    rows: list[tuple[Annotation, FaultyRow]] = []  # each with what is wrong with it, which may be nothing
    faulty: list[FaultyRow] = []
    known: dict[int, str] = {}  # the place of a `desc_id`
    unnumbered: list[FaultyRow] = []
    lengths: dict[str, tuple[float, str]] = {}  # the first duration of a video, and its place
    for place, text in json_rows(path, AnnotationError):
        check = FaultyRow(place=place, text=text.decode("utf-8", "replace"))
        faulty.append(check)
        try:
            line = _Line.model_validate_json(text)
        except ValidationError as error:
            check.faults += [f"{_field(item['loc'])}: {_meaning(item['msg'])}" for item in error.errors()]
            continue
        row = _completed(line, len(rows))
        check.faults += _value_faults(row, beyond_duration)
        if "desc_id" not in line.model_fields_set:
            unnumbered.append(check)
        elif row.desc_id in known:
            check.faults.append(f"desc_id: {row.desc_id} is already that of {known[row.desc_id]}")
        else:
            known[row.desc_id] = place
        length, first = lengths.setdefault(row.video, (row.duration, place))
        if beyond_duration == "error" and abs(length - row.duration) > SAME_SECONDS:
            check.faults.append(f"duration: {row.duration} s, but {length} s of the same video in {first}")
        rows.append((row, check))
    if known:
        having = next(iter(known.values()))
        for check in unnumbered:
            check.faults.append(f"desc_id: missing, but {having} has one")
    faulty = [check for check in faulty if check.faults]
    if faulty and dropped is None:
        raise AnnotationError(_listing(path, [f"{check.place}: {fault}" for check in faulty for fault in check.faults]))
    sound = [row for row, check in rows if not check.faults]
    if not sound:
        what = "has no row without a fault" if faulty else "is empty"
        raise AnnotationError(f"annotation file {path} {what}; it needs one JSON object a line")
    if dropped is not None:
        dropped += faulty
    return sound


def _completed(line: _Line, number: int) -> Annotation:
    """Return a line with what it leaves out; `number` is its row, from 0."""
    absent = {"desc_id": number, "cog_desc": line.fig_desc}
    return Annotation(**{**line.model_dump(), **absent} | line.model_dump(include=line.model_fields_set))


def _field(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location) or "whole line"


def _meaning(message: str) -> str:
    return message + ("; save the file as UTF-8" if "invalid unicode code point" in message else "")


def _value_faults(row: Annotation, beyond_duration: str) -> list[str]:
    start, end = row.time
    faults = []
    parts = row.video.split("/")
    if not row.video.strip() or "\\" in row.video or {"", ".", ".."} & set(parts):
        faults.append(f"video: {row.video!r} is not a file stem, or a path below the folder of the videos")
    if not row.fig_desc.strip():
        faults.append("fig_desc: the query text is empty")
    if row.duration <= 0:
        faults.append(f"duration: {row.duration} s is not above 0")
    if start < 0:
        faults.append(f"time: start {start} s is below 0")
    if end <= start:
        faults.append(f"time: end {end} s is not after start {start} s")
    if beyond_duration == "error":
        faults += [
            f"time: {name} {second} s is beyond the duration of {row.duration} s; "
            'correct it, or read with beyond_duration="keep"'
            for name, second in (("start", start), ("end", end))
            if second > row.duration
        ]
    return faults


def _listing(path: Path, faults: list[str]) -> str:
    count = f"{len(faults)} fault" + ("s" if len(faults) > 1 else "")
    lines = [
        f"annotation file {path} has {count}; correct or remove these rows, or set data.faulty_rows=drop",
        *faults[:LISTED_FAULTS],
    ]
    if len(faults) > LISTED_FAULTS:
        lines.append(f"and {len(faults) - LISTED_FAULTS} more")
    return "\n  ".join(lines)
