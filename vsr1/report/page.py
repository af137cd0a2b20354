"""The HTML report of one run or of several side by side: one file with no reference to anything outside it.

The page's own script and style are the only ones that its content security policy lets run, by their hashes. Every text
of a run is escaped or goes into a compressed data block that the script writes out as text. A video whose frames cannot
be had is an error, not a gap in the page.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from vsr1.formats.atomic import replacing
from vsr1.metrics.long_search import LongSearchSummary
from vsr1.metrics.summary import EvalSummary
from vsr1.navigate.summary import NavigateSummary
from vsr1.report import curves, figures
from vsr1.report.budgets import Accuracies, accuracies, accuracy_chart, found_moments
from vsr1.report.films import Film, bytes_of_a_film, film_of
from vsr1.report.metric_rows import METRIC_ROWS, Cell, Intervals, MetricRow, cells
from vsr1.report.rows import TRAINING, Row
from vsr1.report.settings import setting_rows
from vsr1.video.clips import Clip

SCRIPTS = (  # they make one script, in this order
    "viewer_data.js", "viewer_list.js", "viewer_detail.js", "viewer_search.js", "viewer_navigation.js",
    "viewer_long_search.js", "viewer.js",
)  # fmt: skip

Frames = Callable[[str, str], Clip]
Summary = EvalSummary | NavigateSummary | LongSearchSummary


@dataclass(frozen=True)
class Run:
    """What the page shows of one run.

    Attributes:
        settings: its resolved configuration as nested mappings, None if it is not known.
        scalars: rows of `read_scalars`.
        evaluations: by name ("before", "after", …), in the order of the columns.
        rows: every trajectory, of evaluations and of training, see `rows.row_of`.
        frames: video id and content hash to a clip; its errors pass through. None leaves films out.
        unfinished: names of evaluations that have trajectories but did not end.
        events: of its training, see `vsr1.runs.events`.
    """

    name: str
    settings: Mapping[str, Any] | None = None
    scalars: list[dict[str, Any]] = field(default_factory=list)
    evaluations: dict[str, Summary] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    frames: Frames | None = None
    unfinished: list[str] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Evaluation:
    """A column of the metric table and its figures: an evaluation of searches, or those of it with one budget."""

    run: int
    budget: str
    label: str
    summary: EvalSummary
    rows: list[Row]
    intervals: Intervals


def write_report(out: Path, *, title: str, runs: Sequence[Run]) -> None:
    """Write the page of runs, each with a name of its own, to `out`, whose folder is made if missing."""
    evaluations, navigations = _evaluations(runs)
    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = (folder / "page.css").read_text(encoding="utf-8")
    script = "\n".join((folder / name).read_text(encoding="utf-8") for name in SCRIPTS)
    data, films = _data(runs)
    kinds = {row["kind"] for run in runs for row in run.rows}
    parts = environment.get_template("page.html.j2").generate(
        title=title,
        runs=runs,
        evaluations=evaluations,
        navigations=navigations,
        accuracy=accuracy_chart(navigations),
        kinds=kinds,
        has_searches=bool(kinds - {"navigate"}),
        has_budgets=bool(kinds - {"search"}),
        groups=groupby(((row, _cells(row, evaluations)) for row in METRIC_ROWS), key=lambda line: line[0].group),
        stages=curves.charts_by_stage([run.scalars for run in runs]),
        chart=curves,
        figures=figures,
        events=[row for run in runs for row in _event_rows(run)],
        settings=setting_rows([run.settings for run in runs]),
        training=TRAINING,
        most_turns=max((len(row["turns"]) for run in runs for row in run.rows), default=0),
        style=Markup(style),
        script=Markup(script),
        style_hash=_sha256(style),
        script_hash=_sha256(script),
        data=data,
        films=films,
    )
    with replacing(out) as part, part.open("w", encoding="utf-8") as file:
        file.writelines(parts)


def _evaluations(runs: Sequence[Run]) -> tuple[list[Evaluation], list[Accuracies]]:
    evaluations, navigations = list[Evaluation](), list[Accuracies]()
    for number, run in enumerate(runs):
        for name, summary in run.evaluations.items():
            rows = [row for row in run.rows if row["source"] == name]
            label = f"{run.name}: {name}" if len(runs) > 1 else name
            match summary:
                case NavigateSummary():
                    navigations.append(accuracies(label, summary, rows))
                case LongSearchSummary():
                    navigations.append(found_moments(label, summary, rows))
                    for budget, one in summary.budgets.items():
                        own = [row for row in rows if f"{row['budget']:g}" == budget]
                        evaluations.append(_evaluation(number, f"{label}, budget {budget}", one.search, own, budget))
                case _:
                    evaluations.append(_evaluation(number, label, summary, rows))
    return sorted(evaluations, key=lambda item: (item.run, float(item.budget or 0))), navigations


def _evaluation(run: int, label: str, summary: EvalSummary, rows: list[Row], budget: str = "") -> Evaluation:
    intervals = figures.intervals(rows, sum(summary.failed.values())) if rows else {}
    return Evaluation(run, budget, label, summary, rows, intervals)


def _event_rows(run: Run) -> list[dict[str, str]]:
    """Return what the table of events shows: seconds since the first one, what happened, and the details as text."""
    rows = []
    for event in run.events:
        details = {name: value for name, value in event.items() if name not in ("time", "kind")}
        told = ", ".join(f"{name} {_text(value)}" for name, value in details.items())
        seconds = f"{event['time'] - run.events[0]['time']:.1f}"
        rows.append({"run": run.name, "seconds": seconds, "kind": str(event["kind"]), "details": told})
    return rows


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{name} {part}" for name, part in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _cells(row: MetricRow, evaluations: list[Evaluation]) -> list[Cell]:
    """Return the cells of all columns; a change is told within a run and a budget only."""
    result: list[Cell] = []
    for _, group in groupby(evaluations, key=lambda evaluation: (evaluation.run, evaluation.budget)):
        columns = list(group)
        result += cells(row, [item.summary for item in columns], [item.intervals for item in columns])
    return result


def _data(runs: Sequence[Run]) -> tuple[str, Iterator[Film]]:
    """Return the data block, and the films that it refers to by number, each made when it is asked for."""
    readers: dict[tuple[str, str], Frames] = {}  # of each clip, in the order of their numbers
    numbers: dict[tuple[str, str], int] = {}
    trajectories: list[Row] = []
    taken: Counter[str] = Counter()
    for number, run in enumerate(runs):
        for row in run.rows:
            name = f"{run.name}/{row['source']}/{row['step']}/{row['query_id']}/{row['sample']}"
            taken[name] += 1
            unique = name if taken[name] == 1 else f"{name}/{taken[name]}"  # a step that was done again
            turns = [{**turn, "film": None} for turn in row["turns"]]
            for turn in turns:
                if run.frames is None or turn["clip"] is None:
                    continue
                clip = turn["video"], turn["clip"]
                readers.setdefault(clip, run.frames)
                turn["film"] = numbers.setdefault(clip, len(numbers))
            trajectories.append({**row, "id": unique, "run": number, "turns": turns})
    block = {"runs": [run.name for run in runs], "trajectories": trajectories}
    packed = gzip.compress(json.dumps(block, ensure_ascii=False, separators=(",", ":")).encode(), 6, mtime=0)
    most_bytes = bytes_of_a_film(len(readers))
    films = (film_of(frames(video, clip), most_bytes) for (video, clip), frames in readers.items())
    return base64.b64encode(packed).decode("ascii"), films


def _sha256(text: str) -> str:
    """Return the name by which a content security policy admits an inline script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
