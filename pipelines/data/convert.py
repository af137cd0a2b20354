"""Annotation files of other corpora as rows of this project: Charades-STA, DiDeMo, ActivityNet Captions, QVHighlights.

Which form a file has follows from what is in it. A length that it does not state is that of the video.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from pipelines.data.manifest import BuildError, Row, files_by_name, id_of
from vsr1.formats.annotations import AnnotationError
from vsr1.formats.atomic import write_lines
from vsr1.formats.rows import utf8_content
from vsr1.video.container import VideoError
from vsr1.video.decode import probe_video
from vsr1.video.faults import work_on

SEGMENT_S = 5.0  # of DiDeMo, which names moments by the numbers of such parts
Seconds = Callable[[str], float]  # of a video


def convert(source: Path, videos: Path, out: Path) -> int:
    """Write the rows of an annotation file of another corpus as JSON lines, and return how many there are.

    Args:
        videos: folder of the videos, which are opened where the file does not state their length.

    Raises:
        AnnotationError: a file of another form, or a row that does not have it.
        BuildError: a video whose length is needed has no file.
        VideoError: one whose length is needed does not open.
    """

    @cache
    def files() -> dict[str, list[Path]]:
        return files_by_name(videos)

    @cache
    def seconds_of(video: str) -> float:
        if not (paths := files().get(id_of(video))):
            raise BuildError(f"{source}: {video}: no video file in {videos}, and the file does not state its length")
        with work_on(paths[0]):
            return round(probe_video(paths[0]), 3)

    rows = list(converted(source, seconds_of))
    write_lines(out, rows)
    return len(rows)


def converted(source: Path, seconds_of: Seconds) -> Iterator[Row]:
    """Yield the rows of an annotation file, one a moment; errors as of `convert`."""
    try:
        text = utf8_content(source, AnnotationError).decode().strip()
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{source}: not UTF-8 at byte {error.start}; save the file as UTF-8 text") from error
    for number, entry in enumerate(_entries(text), start=1):
        try:
            yield from _moments(entry, seconds_of)
        except (BuildError, VideoError):
            raise
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise AnnotationError(
                f"{source}: row {number} is none of Charades-STA (`ID START END##WORDS`), DiDeMo (description, times), "
                f"ActivityNet Captions (timestamps, sentences) and QVHighlights (query, relevant_windows): {error!r}"
            ) from error


def _entries(text: str) -> list[Any]:
    """Return the entries of a list or an object, or else the lines."""
    try:
        value = json.loads(text)
    except ValueError:
        return [line for line in text.split("\n") if line.strip()]
    if isinstance(value, dict) and "relevant_windows" not in value:  # one line of QVHighlights is an object too
        return [{"id": name, "captions": captions} for name, captions in value.items()]
    return value if isinstance(value, list) else [value]


def _moments(entry: Any, seconds_of: Seconds) -> Iterator[Row]:
    if isinstance(entry, str) and "##" in entry:  # Charades-STA
        place, _, words = entry.partition("##")
        video, start, end = place.split()
        yield _row(video, words, float(start), float(end), seconds_of(video))
        return
    fields = json.loads(entry) if isinstance(entry, str) else entry
    if "captions" in fields:  # ActivityNet Captions
        captions = fields["captions"]
        for (start, end), words in zip(captions["timestamps"], captions["sentences"], strict=True):
            yield _row(fields["id"], words, start, end, captions["duration"])
    elif "relevant_windows" in fields:  # QVHighlights
        for start, end in fields["relevant_windows"]:
            yield _row(fields["vid"], fields["query"], start, end, fields["duration"])
    else:  # DiDeMo: what most annotators chose, the first of several
        [((first, last), _)] = Counter(map(tuple, fields["times"])).most_common(1)
        seconds = seconds_of(fields["video"])
        end = min((last + 1) * SEGMENT_S, seconds)  # the last part of a video may be shorter
        yield _row(fields["video"], fields["description"], first * SEGMENT_S, end, seconds)


def _row(video: str, words: str, start: float, end: float, seconds: float) -> Row:
    return {"video": video, "fig_desc": words.strip(), "time": [start, end], "duration": seconds}
