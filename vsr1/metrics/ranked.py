"""Scores of ranked lists of moments, by the rules of two public evaluators; pure.

`tvr_scores` follows TVR's `standalone_eval` (VCMR, SVMR and VR), `moment_detr_scores` that of Moment-DETR (moments of
one given video): ray-retrieval-vllm.md §3.2 and §3.3. In both the order of a list is its ranking, whatever its scores
say, but in mAP of Moment-DETR: it cuts a list to its first 10 and then sorts these by score. They compute in float32,
here it is float64: an overlap within about 1e-7 of a threshold may fall beyond it.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, TypeVar

from vsr1.episode.moments import Span

Query = TypeVar("Query", bound=Hashable)
Moment = tuple[str | None, float, float]  # video (None: one that nobody knows), start and end in seconds
Window = Span | tuple[float, float, float]  # start and end in seconds, and a score

TVR_DEPTHS = (1, 5, 10, 100)
TVR_THRESHOLDS = (0.5, 0.7)
TVR_LONGEST = 100  # entries of a list that count
MANY_SPANS = 4  # from so many true spans on a moment has to hit two of them, as DiDeMo's annotators disagree
DETR_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
DETR_LONGEST = 10  # windows of a list that count in mAP
# Seconds of the true windows that count: longer than the first number, up to the second.
DETR_LENGTHS = {"short": (0, 10), "middle": (10, 30), "long": (30, 150)}


class RankedScoreError(ValueError):
    """Predictions that do not fit the ground truth; the message names what is missing or too much."""


@dataclass(frozen=True)
class TrueMoment:
    """The right answer: one span, or at least `MANY_SPANS` by several annotators; seconds."""

    video: str
    spans: tuple[Span, ...]

    def __post_init__(self) -> None:
        if len(self.spans) != 1 and len(self.spans) < MANY_SPANS:
            raise RankedScoreError(
                f"video {self.video!r} has {len(self.spans)} true spans; TVR's rules know 1, or {MANY_SPANS} and more"
            )


def tvr_scores(
    submission: Mapping[str, Mapping[Query, Sequence[Moment]]], truth: Mapping[Query, TrueMoment]
) -> dict[str, dict[str, float]]:
    """Return R@K in percent with two decimals: `{"VCMR": {"0.5-r1": …}, "SVMR": {"0.5-r1": …}, "VR": {"r1": …}}`.

    VCMR: one of the first K has the right video and enough overlap. SVMR: the same among the entries with the right
    video. VR: one of the first K has the right video. Scores by query type are left out.

    Args:
        submission: any of the three tasks, each with the ranking of every query.

    Raises:
        RankedScoreError: no task or another one, or a task's queries are not those of the truth.
    """
    if not submission or submission.keys() - {"VCMR", "SVMR", "VR"}:
        raise RankedScoreError(f"tasks {sorted(submission)}: a submission holds VCMR, SVMR, VR, or some of them")
    scores: dict[str, dict[str, float]] = {}
    for task, rankings in submission.items():
        _same_queries(task, rankings, truth)
        lists = [(truth[query], ranking[:TVR_LONGEST]) for query, ranking in rankings.items()]
        if task == "SVMR":
            lists = [(right, [moment for moment in ranking if moment[0] == right.video]) for right, ranking in lists]
        overlaps = {"": 0.0} if task == "VR" else {f"{threshold}-": threshold for threshold in TVR_THRESHOLDS}
        scores[task] = {}
        for name, least in overlaps.items():
            hits = [[_hits(moment, right, least) for moment in ranking] for right, ranking in lists]
            scores[task] |= {f"{name}r{depth}": _percent([any(row[:depth]) for row in hits]) for depth in TVR_DEPTHS}
    return scores


def moment_detr_scores(
    windows: Mapping[Query, Sequence[Window]], truth: Mapping[Query, Sequence[Span]]
) -> dict[str, Any]:
    """Return `{"MR-R1": {"0.5": …}, "MR-mAP": {"0.5": …, "average": …}, "MR-mIoU": …}` in percent with two decimals.

    R1 and mIoU take the first window's best overlap with a true one; mAP is the interpolated precision over the first
    `DETR_LONGEST` windows, by score where they have one, where each true window can be found once. A query without
    windows scores 0 (Moment-DETR's script leaves it out of mAP and cannot compute R1). Under "short", "middle" and
    "long" stand the same figures over the true windows of such a length, where there are any.

    Raises:
        RankedScoreError: the queries are not those of the truth, or one has no true window.
    """
    _same_queries("windows", windows, truth)
    for query, spans in truth.items():
        if not spans:
            raise RankedScoreError(f"query {query!r} has no true window; leave it out of the ground truth")
    scores: dict[str, Any] = _detr_scores([(ranking, truth[query]) for query, ranking in windows.items()])
    for name, (least, most) in DETR_LENGTHS.items():
        pairs = [
            (ranking, [span for span in truth[query] if least < span[1] - span[0] <= most])
            for query, ranking in windows.items()
        ]
        if pairs := [(ranking, spans) for ranking, spans in pairs if spans]:
            scores[name] = _detr_scores(pairs)
    return scores


def _detr_scores(pairs: Sequence[tuple[Sequence[Window], Sequence[Span]]]) -> dict[str, Any]:
    first = [max(_iou(ranking[0], span) for span in spans) if ranking else 0.0 for ranking, spans in pairs]
    precision = {
        str(least): fmean(_average_precision(ranking, spans, least) for ranking, spans in pairs)
        for least in DETR_THRESHOLDS
    }
    precision["average"] = fmean(precision.values())
    return {
        "MR-R1": {str(least): _percent([iou >= least for iou in first]) for least in DETR_THRESHOLDS},
        "MR-mAP": {name: _percent([value]) for name, value in precision.items()},
        "MR-mIoU": _percent(first),
    }


def _hits(moment: Moment, right: TrueMoment, threshold: float) -> bool:
    if moment[0] != right.video:
        return False
    needed = 2 if len(right.spans) >= MANY_SPANS else 1
    return sum(_iou(moment[1:], span) >= threshold for span in right.spans) >= needed


def _iou(a: Window, b: Span) -> float:
    """Return the overlap by the length from the first start to the last end, as both evaluators do; 0 if that is 0."""
    intersection = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    hull = max(a[1], b[1]) - min(a[0], b[0])
    return intersection / hull if hull != 0 else 0.0


def _average_precision(windows: Sequence[Window], truth: Sequence[Span], threshold: float) -> float:
    """Return the area under the interpolated precision over recall, in 0..1."""
    left = set(range(len(truth)))
    precisions: list[float] = []  # after each window that finds a true one
    ranking = sorted(windows[:DETR_LONGEST], key=lambda window: -window[2] if len(window) > 2 else 0.0)
    for count, window in enumerate(ranking, start=1):
        best = max(left, key=lambda place: (_iou(window, truth[place]), place), default=None)
        if best is not None and _iou(window, truth[best]) >= threshold:
            left.remove(best)
            precisions.append((len(precisions) + 1) / count)
    return sum(max(precisions[place:]) for place in range(len(precisions))) / len(truth)


def _percent(values: Sequence[float]) -> float:
    return round(100 * fmean(values), 2)


def _same_queries(task: str, rankings: Mapping[Query, object], truth: Mapping[Query, object]) -> None:
    if not truth:
        raise RankedScoreError("the ground truth has no query")
    missing, foreign = truth.keys() - rankings.keys(), rankings.keys() - truth.keys()
    for what, queries in (("misses", missing), ("has too much", foreign)):
        if queries:
            shown = ", ".join(sorted(map(str, queries))[:10])
            raise RankedScoreError(
                f"{task} {what} {len(queries)} queries: {shown}; it must have exactly those of the ground truth"
            )
