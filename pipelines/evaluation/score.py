"""`vsr1 score` and `vsr1 export`: what files of predictions are worth, without a model and without Ray."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from vsr1.formats.annotations import Annotation, read_annotations
from vsr1.metrics.exchange import ExchangeFormat, write_submission, write_truth
from vsr1.metrics.long_search import LongSearchSummary
from vsr1.metrics.predictions import PredictionError, PredictionRow, Problem, read_predictions
from vsr1.metrics.rescoring import TOLERANCE
from vsr1.metrics.summary import EvalSummary, summarise
from vsr1.navigate.summary import NavigateSummary
from vsr1.report.metric_rows import metric_table


def score_predictions(
    path: Path, annotations: Path | None = None
) -> tuple[EvalSummary, list[Problem], list[PredictionRow]]:
    """Score a prediction file, with the annotations only rows about them; also what is wrong, and the rows.

    Raises:
        PredictionError: no readable row, or none of this dataset.
        AnnotationError: unusable annotations.
    """
    rows, problems = read_predictions(path)
    if annotations is not None:
        known = {row.qid: row for row in read_annotations(annotations, beyond_duration="keep")}
        foreign = [(row, _foreign(row, known)) for row in rows]
        problems += [problem for _, problem in foreign if problem]
        rows = [row for row, problem in foreign if not problem]
        if not rows:
            raise PredictionError(f"no row of {path} is about {annotations}; the first: {problems[0]}")
        if missing := known.keys() - {row.qid for row in rows}:
            first = ", ".join(sorted(missing)[:5])
            problems.append(Problem("", "qid", f"{len(missing)} of {len(known)} annotated have no row: {first}"))
    return summarise(rows, problems=problems), problems, rows


def export_predictions(
    path: Path, form: ExchangeFormat, out: Path, ground_truth_out: Path | None, tolerate: bool
) -> tuple[list[Problem], int]:
    """Write a prediction file in another evaluator's format; returns the problems and the number of queries written.

    With a problem nothing is written, unless that is tolerated: then the rows with problems are left out.

    Raises:
        PredictionError: no readable row, or rows that cannot be exported.
    """
    rows, problems = read_predictions(path)
    problems += [Problem(row.name, "gt_start", "no ground truth to export") for row in rows if row.gt_span is None]
    if problems and not tolerate:
        return problems, 0
    rows = [row for row in rows if row.gt_span is not None]
    write_submission(rows, form, out)
    if ground_truth_out is not None:
        write_truth(rows, form, ground_truth_out)
    return problems, len(rows)


def show_summary(console: Console, label: str, summary: EvalSummary | NavigateSummary | LongSearchSummary) -> None:
    """Print the metric table, what failed, and where the two definitions of verification differ, both."""
    console.print(metric_table({label: summary}) if isinstance(summary, EvalSummary) else summary.table())
    if summary.failed:
        reasons = ", ".join(f"{count} {reason}" for reason, count in summary.failed.items())
        console.print(f"failed, counted as misses: {reasons}", markup=False)
    if not isinstance(summary, EvalSummary):
        return
    published = summary.published
    for turn, ours, theirs in (
        ("turn 1", summary.verification_by_turn["1"], published.turn1),
        ("last turn", summary.verification_final, published.final),
    ):
        if theirs.accuracy != ours.accuracy:
            value = "none" if theirs.accuracy is None else f"{theirs.accuracy:.1%}"
            text = (
                f"verification, {turn}: {ours.accuracy:.1%} of {ours.judged}, about the video looked at; by the "
                f"published definition {value} of {theirs.count}"
            )
            console.print(text, markup=False, soft_wrap=True)


def show_problems(problems: list[Problem]) -> None:
    """Print one line each, on standard error."""
    console = Console(stderr=True)
    for problem in problems:
        console.print(str(problem), style="red", markup=False, highlight=False, soft_wrap=True)


def _foreign(row: PredictionRow, known: dict[str, Annotation]) -> Problem | None:
    """Return why a row is not about these annotations, None if it is."""
    annotation = known.get(row.qid or "")
    if annotation is None:
        return Problem(row.name, "qid", "not in the annotations; is it another dataset's? not scored")
    if row.gt_pos_doc_id not in (None, annotation.video):
        message = f"{row.gt_pos_doc_id!r}, annotated is {annotation.video!r}; not scored"
        return Problem(row.name, "gt_pos_doc_id", message)
    true = (min(annotation.time), max(annotation.time))
    if row.gt_span and any(abs(a - b) > TOLERANCE for a, b in zip(row.gt_span, true, strict=True)):
        return Problem(row.name, "gt_start", f"{row.gt_span} s, annotated is {true} s; not scored")
    return None
