"""Reads `raw_annotation/<split>.jsonl`: a file is returned whole and checked, or refused with the list of its faults.

Nothing is dropped and no order is changed: row i of the result is the i-th line that is not blank, which is what the
evaluation index counts (data-eval.md §1.1). A corpus of one's own needs only video, time, duration and query text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

LISTED_FAULTS = 20


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


def read_annotations(path: Path, beyond_duration: Literal["error", "keep"] = "error") -> list[Annotation]:
    """Read every annotation of a JSON-lines file, in file order; blank lines are passed over.

    Args:
        path: UTF-8 file, one object a line; keys other than the seven are ignored. `video`, `time`, `duration` and
            `fig_desc` are needed. Without `cog_desc` the query text stands in for it, without `fig_desc_score` 1.0;
            where no line has a `desc_id`, rows are numbered from 0.
        beyond_duration: what a moment that begins or ends after the video does. The published files hold such rows
            (up to 15 % of one); "keep" returns them with their times unchanged.

    Raises:
        AnnotationError: no such file, no annotation in it, or any faulty line: malformed JSON, a missing key or wrong
            type, an impossible moment, an empty video or query, a `desc_id` seen before, or one in some lines only.
    """
    if not path.is_file():
        raise AnnotationError(f"annotation file {path} does not exist; put the split's annotations there")
    rows: list[Annotation] = []
    faults: list[str] = []
    first_line: dict[int, int] = {}
    without_id: list[int] = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            read = _Line.model_validate_json(line)
        except ValidationError as error:
            faults += [f"line {number}: {_field(item['loc'])}: {item['msg']}" for item in error.errors()]
            continue
        row = _completed(read, len(rows))
        problems = _value_faults(row, beyond_duration)
        if "desc_id" not in read.model_fields_set:
            without_id.append(number)
        elif row.desc_id in first_line:
            problems.append(f"desc_id: {row.desc_id} is already that of line {first_line[row.desc_id]}")
        else:
            first_line[row.desc_id] = number
        faults += [f"line {number}: {fault}" for fault in problems]
        rows.append(row)
    if first_line:
        having = next(iter(first_line.values()))
        faults += [f"line {number}: desc_id: missing, but line {having} has one" for number in without_id]
    if faults:
        raise AnnotationError(_listing(path, faults))
    if not rows:
        raise AnnotationError(f"annotation file {path} is empty; it needs one JSON object a line")
    return rows


def _completed(line: _Line, number: int) -> Annotation:
    """Return a line with what it leaves out; `number` is its row, from 0."""
    absent = {"desc_id": number, "cog_desc": line.fig_desc}
    return Annotation(**{**line.model_dump(), **absent} | line.model_dump(include=line.model_fields_set))


def _field(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location) or "whole line"


def _value_faults(row: Annotation, beyond_duration: str) -> list[str]:
    start, end = row.time
    faults = []
    if not row.video.strip() or "/" in row.video or "\\" in row.video:
        faults.append(f"video: {row.video!r} is not a file stem")
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
    lines = [f"annotation file {path} has {count}; correct or remove these lines", *faults[:LISTED_FAULTS]]
    if len(faults) > LISTED_FAULTS:
        lines.append(f"and {len(faults) - LISTED_FAULTS} more")
    return "\n  ".join(lines)
