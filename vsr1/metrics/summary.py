"""One evaluation of a list of trajectories: retrieval, moments, verification and what it cost.

Every query counts once in every denominator; a query that failed scores 0, it is never left out. Verification is judged
on the video that was looked at, with an unreadable verdict counted as wrong (data-eval.md §5 says why).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from statistics import fmean
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from vsr1.agent.trajectory import Segment, Trajectory
from vsr1.metrics.retrieval import mean_rank, median_rank, mrr, recall_at
from vsr1.metrics.temporal import moment_iou, recall_at_iou


class _Scores(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=True, validate_by_alias=True)


def _named(name: str) -> Any:
    """A field that JSON calls by the reference's metric name."""
    return Field(validation_alias=name, serialization_alias=name)


class RetrievalScores(_Scores):
    """Ranks of the right video over all queries: recalls and MRR in 0..1, ranks from 1."""

    recall_at_1: float = _named("R@1")
    recall_at_5: float = _named("R@5")
    recall_at_10: float = _named("R@10")
    recall_at_100: float = _named("R@100")
    mrr: float = _named("MRR")
    mean_rank: float
    median_rank: float


class MomentScores(_Scores):
    """VCMR: share of queries with the moment found at each overlap, and the mean overlap, in 0..1."""

    iou_03: float = _named("IoU@0.3@R1")
    iou_05: float = _named("IoU@0.5@R1")
    iou_07: float = _named("IoU@0.7@R1")
    mean_iou: float = _named("mIoU@R1")


class VerdictCounts(_Scores):
    """How often each verdict was given."""

    matched: int = 0
    not_matched: int = 0
    unknown: int = 0


class VerificationScores(_Scores):
    """Verdicts against the videos that were looked at; `accuracy` in 0..1 over `judged` looks."""

    accuracy: float
    judged: int
    right_video: VerdictCounts
    wrong_video: VerdictCounts


class EvalSummary(_Scores):
    """Everything one evaluation reports. Shares are in 0..1, costs are means over queries."""

    queries: int = _named("N")
    corpus_size: int
    engine: RetrievalScores  # the first ranking, before any refinement
    refined: RetrievalScores  # the last ranking, after the last refinement if there was one
    moments: MomentScores
    verification_final: VerificationScores  # the last turn of each query
    verification_all_turns: VerificationScores
    verification_by_turn: dict[str, VerificationScores]  # "1", "2", …: the queries that got that far
    latent_tokens_per_query: float  # all latents decoded, of every turn
    text_tokens_per_query: float  # sampled tokens, the refine token included, latents not
    turns_per_query: float
    end_reasons: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """Plain values under the reference's metric names (`R@1`, `MRR`, `IoU@0.5@R1`, …)."""
        return self.model_dump(mode="json", by_alias=True)

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> EvalSummary:
        """Inverse of `to_json`. Raises pydantic's ValidationError, which names each missing or unknown field."""
        return cls.model_validate(row)


def refined_rank(trajectory: Trajectory) -> int:
    """Rank of the right video in the last ranking made: after the last turn's refinement, or before without one."""
    last = trajectory.last
    return last.gt_rank_before if last.gt_rank_after is None else last.gt_rank_after


def summarise(trajectories: list[Trajectory], corpus_size: int) -> EvalSummary:
    """Evaluate trajectories, one a query, against a corpus of `corpus_size` videos.

    Raises:
        ValueError: no trajectories, one without a turn, or a rank outside 1..`corpus_size`.
    """
    if not trajectories:
        raise ValueError("summarise: no trajectories were given; check that the evaluation split has queries")
    for trajectory in trajectories:
        _check(trajectory, corpus_size)
    looks = [(trajectory, segment) for trajectory in trajectories for segment in trajectory.segments]
    turns = sorted({segment.turn for _, segment in looks})
    ious = [moment_iou(trajectory) for trajectory in trajectories]
    latents = sum(0 if segment.latents is None else len(segment.latents) for _, segment in looks)
    count = len(trajectories)
    return EvalSummary(
        queries=count,
        corpus_size=corpus_size,
        engine=_retrieval([trajectory.segments[0].gt_rank_before for trajectory in trajectories]),
        refined=_retrieval([refined_rank(trajectory) for trajectory in trajectories]),
        moments=MomentScores(
            iou_03=recall_at_iou(ious, 0.3),
            iou_05=recall_at_iou(ious, 0.5),
            iou_07=recall_at_iou(ious, 0.7),
            mean_iou=fmean(ious),
        ),
        verification_final=_verification((trajectory, trajectory.last) for trajectory in trajectories),
        verification_all_turns=_verification(looks),
        verification_by_turn={
            str(turn): _verification(look for look in looks if look[1].turn == turn) for turn in turns
        },
        latent_tokens_per_query=latents / count,
        text_tokens_per_query=sum(len(segment.response_token_ids) for _, segment in looks) / count,
        turns_per_query=len(looks) / count,
        end_reasons=dict(Counter(trajectory.end_reason for trajectory in trajectories).most_common()),
    )


def _check(trajectory: Trajectory, corpus_size: int) -> None:
    if not trajectory.segments:
        raise ValueError(f"summarise: the trajectory of query {trajectory.query_id!r} has no turn; drop or rerun it")
    for segment in trajectory.segments:
        for rank in (segment.gt_rank_before, segment.gt_rank_after):
            if rank is not None and not 1 <= rank <= corpus_size:
                raise ValueError(
                    f"summarise: query {trajectory.query_id!r}, turn {segment.turn}: rank {rank} is outside "
                    f"1..{corpus_size}; is corpus_size the number of videos that were searched?"
                )


def _retrieval(ranks: list[int]) -> RetrievalScores:
    return RetrievalScores(
        recall_at_1=recall_at(ranks, 1),
        recall_at_5=recall_at(ranks, 5),
        recall_at_10=recall_at(ranks, 10),
        recall_at_100=recall_at(ranks, 100),
        mrr=mrr(ranks),
        mean_rank=mean_rank(ranks),
        median_rank=median_rank(ranks),
    )


def _verification(looks: Iterable[tuple[Trajectory, Segment]]) -> VerificationScores:
    counts = Counter((segment.video_id == trajectory.gt_video, segment.verdict) for trajectory, segment in looks)
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
    return VerificationScores(accuracy=correct / judged, judged=judged, right_video=right, wrong_video=wrong)
