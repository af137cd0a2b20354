"""The scores that an evaluation is made of, and how each comes from turns: pure, and 0 for a query that failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from vsr1.episode.moments import recall_at_iou
from vsr1.metrics.predictions import PredictionRow, TurnRow
from vsr1.metrics.retrieval import mean_rank, median_rank, mrr, recall_at


class Scores(BaseModel):
    """Frozen, with every field named; JSON uses the reference's metric names where it has one."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=True, validate_by_alias=True)


def named(name: str) -> Any:
    """Declare a field that JSON calls by the reference's metric name."""
    return Field(validation_alias=name, serialization_alias=name)


class RetrievalScores(Scores):
    """Ranks of the right video over all queries: recalls and MRR in 0..1, ranks from 1."""

    recall_at_1: float = named("R@1")
    recall_at_5: float = named("R@5")
    recall_at_10: float = named("R@10")
    recall_at_100: float = named("R@100")
    mrr: float = named("MRR")
    mean_rank: float | None  # of the ranked ones; None: there are none
    median_rank: float | None
    ranked: int  # queries with a rank, those that did not fail


class MomentScores(Scores):
    """VCMR: share of queries with the moment found at each overlap, and the mean overlap, in 0..1."""

    iou_03: float = named("IoU@0.3@R1")
    iou_05: float = named("IoU@0.5@R1")
    iou_07: float = named("IoU@0.7@R1")
    mean_iou: float = named("mIoU@R1")


class TurnScores(Scores):
    """Scores of the `count` queries that ran a turn."""

    count: int
    retrieval: RetrievalScores
    moments: MomentScores


class VerdictCounts(Scores):
    """How often each verdict was given."""

    matched: int = 0
    not_matched: int = 0
    unknown: int = 0


class VerificationScores(Scores):
    """Verdicts against the videos that were looked at; `accuracy` in 0..1 over `judged` looks."""

    accuracy: float
    judged: int
    right_video: VerdictCounts
    wrong_video: VerdictCounts
    failed: int  # queries that failed before a verdict; judged, and wrong


class PublishedVerification(Scores):
    """The published evaluator's VER over the `count` rows with a readable verdict; shares in 0..1, None over nothing.

    The verdict is compared with a flag of the row (data-eval.md §5): in turn 1 whether the right video was shown, at
    the end whether it is first after the last refinement, which nobody looked at.
    """

    count: int
    accuracy: float | None
    match_precision: float | None
    not_match_precision: float | None


class PublishedVerifications(Scores):
    turn1: PublishedVerification
    final: PublishedVerification


def turns_after(rows: Sequence[PredictionRow]) -> dict[int, list[TurnRow | None]]:
    """Return, after at most 1, 2, … turns, the turn that counts of each row: that one, or its last; None: it failed."""
    most = max((max(row.max_turn or 0, len(row.turns)) for row in rows), default=0)
    return {
        number: [row.turns[min(number, len(row.turns)) - 1] if row.turns else None for row in rows]
        for number in range(1, most + 1)
    }


def turns_run(rows: Sequence[PredictionRow]) -> dict[int, list[TurnRow]]:
    """Return turn 1, turn 2, … of the rows that ran it, with the keys of `turns_after`."""
    return {number: [row.turns[number - 1] for row in rows if len(row.turns) >= number] for number in turns_after(rows)}


def retrieval_scores(ranks: Sequence[int | None]) -> RetrievalScores:
    """Score one rank a query, None of one that failed."""
    return RetrievalScores(
        recall_at_1=recall_at(ranks, 1),
        recall_at_5=recall_at(ranks, 5),
        recall_at_10=recall_at(ranks, 10),
        recall_at_100=recall_at(ranks, 100),
        mrr=mrr(ranks),
        mean_rank=mean_rank(ranks),
        median_rank=median_rank(ranks),
        ranked=sum(rank is not None for rank in ranks),
    )


def refined_scores(turns: Iterable[TurnRow | None]) -> RetrievalScores:
    """Score the ranks after the refinement of a turn a query."""
    return retrieval_scores([turn.policy_rank if turn else None for turn in turns])


def moment_scores(turns: Iterable[TurnRow | None]) -> MomentScores:
    """Score the moment of a turn a query."""
    ious = [turn.iou_r1 or 0.0 if turn else 0.0 for turn in turns]
    return MomentScores(
        iou_03=recall_at_iou(ious, 0.3),
        iou_05=recall_at_iou(ious, 0.5),
        iou_07=recall_at_iou(ious, 0.7),
        mean_iou=fmean(ious),
    )


def matched_overlaps(turns: Iterable[TurnRow | None]) -> list[float]:
    """Return the IoU of each turn that matched with a span, on whichever video."""
    return [turn.iou_raw or 0.0 for turn in turns if turn and turn.answer == "matched" and turn.time_parse_ok]


def verification_scores(looks: Iterable[tuple[PredictionRow, TurnRow | None]]) -> VerificationScores:
    """Judge verdicts by the video that was looked at; None stands for a query that failed before its first verdict."""
    counts = Counter((turn.looked_at == row.gt_pos_doc_id, turn.answer) if turn else None for row, turn in looks)
    correct = counts[True, "matched"] + counts[False, "not_matched"]
    right, wrong = (
        VerdictCounts(
            matched=counts[shown_right, "matched"],
            not_matched=counts[shown_right, "not_matched"],
            unknown=counts[shown_right, "unknown"],
        )
        for shown_right in (True, False)
    )
    judged = counts.total()
    return VerificationScores(
        accuracy=correct / judged, judged=judged, right_video=right, wrong_video=wrong, failed=counts[None]
    )


def published_verification(verdicts: Iterable[tuple[str, bool | None]]) -> PublishedVerification:
    """Judge verdicts by the flag beside each, as the published evaluator does."""
    judged = [(verdict == "matched", bool(flag)) for verdict, flag in verdicts if verdict != "unknown"]
    return PublishedVerification(
        count=len(judged),
        accuracy=mean_known(matched == flag for matched, flag in judged),
        match_precision=mean_known(flag for matched, flag in judged if matched),
        not_match_precision=mean_known(not flag for matched, flag in judged if not matched),
    )


def mean_known(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are not None, None without any."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
