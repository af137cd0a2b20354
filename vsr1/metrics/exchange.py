"""Prediction rows in the file formats of two public evaluators, TVR and Moment-DETR, and back.

Each format is a predictions file and a ground-truth file (ray-retrieval-vllm.md §3.2 and §3.3). Their scripts cannot
read an empty list of predictions, so a query without any gets one that hits nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vsr1.episode.moments import Span
from vsr1.formats.atomic import write_lines
from vsr1.formats.rows import json_rows, utf8_content
from vsr1.metrics.predictions import PredictionError, PredictionRow
from vsr1.metrics.ranked import Moment, TrueMoment, Window, moment_detr_scores, tvr_scores

ExchangeFormat = Literal["tvr", "moment-detr"]

NO_VIDEO = -1  # index of no video, in a TVR entry that stands for none

Pair = Annotated[tuple[float, float], Field(strict=False)]
QueryId = int | str  # one tool writes numbers, another texts; results are by the text
RowT = TypeVar("RowT", bound=BaseModel)


class _Read(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)


class _Ranking(_Read):
    desc_id: QueryId
    predictions: list[list[float]]


class _TvrSubmission(_Read):
    video2idx: dict[str, int]
    VCMR: list[_Ranking] | None = None
    SVMR: list[_Ranking] | None = None
    VR: list[_Ranking] | None = None


class _TvrTruth(_Read):
    desc_id: QueryId
    vid_name: str
    ts: Pair | list[Pair]


class _Windows(_Read):
    qid: QueryId
    pred_relevant_windows: list[list[float]]


class _DetrTruth(_Read):
    qid: QueryId
    relevant_windows: list[Pair]


def write_submission(rows: Sequence[PredictionRow], form: ExchangeFormat, target: Path) -> None:
    """Write the rows' ranked moments: all of them for TVR, those of the right video for Moment-DETR.

    Raises:
        PredictionError: a row without ranked moments or ground truth, or for TVR a qid that holds no number.
    """
    _check(rows)
    if form == "moment-detr":
        write_lines(target, map(_windows, rows))
        return
    videos = {row.gt_pos_doc_id for row in rows} | {moment[0] for row in rows for moment in row.ranked_moments or []}
    numbers = {video: number for number, video in enumerate(sorted(filter(None, videos)))}
    rankings = [_tvr_ranking(row, numbers) for row in rows]
    write_lines(target, [{"video2idx": numbers, "VCMR": rankings, "SVMR": rankings, "VR": rankings}])  # one JSON object


def write_truth(rows: Sequence[PredictionRow], form: ExchangeFormat, target: Path) -> None:
    """Write the ground-truth file that belongs to `write_submission` of the same rows. Raises as it does."""
    _check(rows)
    write_lines(target, (_tvr_truth(row) if form == "tvr" else _detr_truth(row) for row in rows))


def score_exchange(path: Path, ground_truth: Path, form: ExchangeFormat) -> dict[str, Any]:
    """Score a file in another evaluator's format by its rules, in percent.

    Raises:
        PredictionError: an unusable file.
        RankedScoreError: the queries of the two files differ.
    """
    if form == "tvr":
        return tvr_scores(read_tvr(path), read_tvr_truth(ground_truth))
    return moment_detr_scores(read_moment_detr(path), read_moment_detr_truth(ground_truth))


def read_tvr(path: Path) -> dict[str, dict[str, list[Moment]]]:
    """Return the rankings of each task of a TVR submission.

    Raises:
        PredictionError: no such file, not a submission, or two rankings of one query.
    """
    _check_exists(path)
    try:
        submission = _TvrSubmission.model_validate_json(utf8_content(path, PredictionError))
    except ValidationError as error:
        raise _unreadable(path, "", error) from None
    names = {number: video for video, number in submission.video2idx.items()}
    tasks = {"VCMR": submission.VCMR, "SVMR": submission.SVMR, "VR": submission.VR}
    return {
        task: _by_query(path, ((r.desc_id, [_moment(path, r.desc_id, e, names) for e in r.predictions]) for r in rows))
        for task, rows in tasks.items()
        if rows is not None
    }


def read_tvr_truth(path: Path) -> dict[str, TrueMoment]:
    """Return TVR's ground truth; `ts` is one span, or several annotators' spans. Raises as `read_tvr` does."""
    rows = ((row, row.ts if isinstance(row.ts, list) else [row.ts]) for row in _lines(path, _TvrTruth))
    return _by_query(path, ((row.desc_id, TrueMoment(row.vid_name, tuple(spans))) for row, spans in rows))


def read_moment_detr(path: Path) -> dict[str, list[Window]]:
    """Return the windows of each query of Moment-DETR predictions, in order. Raises as `read_tvr` does."""
    rows = _lines(path, _Windows)
    return _by_query(path, ((row.qid, [_window(path, row.qid, w) for w in row.pred_relevant_windows]) for row in rows))


def read_moment_detr_truth(path: Path) -> dict[str, list[Span]]:
    """Return the true windows of each query of Moment-DETR's ground truth. Raises as `read_tvr` does."""
    return _by_query(path, ((row.qid, row.relevant_windows) for row in _lines(path, _DetrTruth)))


def _check(rows: Sequence[PredictionRow]) -> None:
    for row in rows:
        if row.gt_pos_doc_id is None or row.gt_span is None:
            raise PredictionError(f"{row.name} has no ground truth; leave it out of the export")
        if row.ranked_moments is None and row.status == "ok":
            raise PredictionError(f"{row.name} has no ranked_moments; only rows of `vsr1 eval` can be exported")


def _desc_id(row: PredictionRow) -> int:
    """Return the annotation's number: a qid is `{desc_id}_fig` (data-eval.md §1.1)."""
    if row.qid is None:
        return row.index or 0
    number = row.qid.removesuffix("_fig")
    if not number.isdecimal():
        raise PredictionError(f"{row.name}: TVR's format needs a number as in '65_fig'")
    return int(number)


def _tvr_ranking(row: PredictionRow, numbers: dict[str, int]) -> dict[str, Any]:
    entries = [[numbers[video], start, end, score] for video, start, end, score in row.ranked_moments or []]
    return {"desc_id": _desc_id(row), "desc": row.query, "predictions": entries or [[NO_VIDEO, 0.0, 0.0, 0.0]]}


def _tvr_truth(row: PredictionRow) -> dict[str, Any]:
    truth = {"vid_name": row.gt_pos_doc_id, "duration": row.gt_duration, "ts": row.gt_span, "desc": row.query}
    return {**truth, "type": "v", "desc_id": _desc_id(row)}


def _detr_query(row: PredictionRow) -> dict[str, Any]:
    return {"qid": row.qid or row.index, "query": row.query, "vid": row.gt_pos_doc_id}


def _windows(row: PredictionRow) -> dict[str, Any]:
    windows = [list(moment[1:]) for moment in row.ranked_moments or [] if moment[0] == row.gt_pos_doc_id]
    return _detr_query(row) | {"pred_relevant_windows": windows or [[0.0, 0.0, 0.0]]}


def _detr_truth(row: PredictionRow) -> dict[str, Any]:
    return _detr_query(row) | {"duration": row.gt_duration, "relevant_windows": [row.gt_span]}


def _moment(path: Path, query: QueryId, entry: list[float], names: dict[int, str]) -> Moment:
    if not entry:
        raise PredictionError(f"{path}: query {query}: a prediction lacks its video: {entry}")
    return names.get(int(entry[0])), *_span(path, query, entry[1:])


def _span(path: Path, query: QueryId, entry: list[float]) -> Span:
    if len(entry) < 2:
        raise PredictionError(f"{path}: query {query}: a prediction lacks its start or end: {entry}")
    return entry[0], entry[1]


def _window(path: Path, query: QueryId, entry: list[float]) -> Window:
    start, end = _span(path, query, entry)
    return (start, end, entry[2]) if len(entry) > 2 else (start, end)


def _check_exists(path: Path) -> None:
    if not path.is_file():
        raise PredictionError(f"file {path} does not exist")


def _lines(path: Path, kind: type[RowT]) -> Iterator[RowT]:
    _check_exists(path)
    for place, text in json_rows(path, PredictionError):
        try:
            yield kind.model_validate_json(text)
        except ValidationError as error:
            raise _unreadable(path, f" {place}:", error) from None


def _by_query(path: Path, items: Iterable[tuple[QueryId, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for query, value in items:
        if str(query) in values:
            raise PredictionError(f"{path}: query {query} is there twice; keep one")
        values[str(query)] = value
    return values


def _unreadable(path: Path, place: str, error: ValidationError) -> PredictionError:
    first = error.errors()[0]
    field = ".".join(map(str, first["loc"])) or "whole"
    return PredictionError(f"{path}:{place} {field}: {first['msg']}; is it the format that was asked for?")
