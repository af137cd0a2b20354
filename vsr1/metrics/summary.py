"""One evaluation of a list of prediction rows: retrieval, moments, verification and what it cost.

Every query counts once in every denominator; a query that failed scores 0, it is never left out. Verification is judged
on the video that was looked at, with an unreadable verdict counted as wrong (data-eval.md §5 says why); the published
definition stands beside it. `vsr1 eval` and `vsr1 score` both score here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import fmean, median
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from vsr1.episode.moments import recall_at_iou
from vsr1.metrics.predictions import PredictionRow, Problem, TurnRow
from vsr1.metrics.rescoring import differences, recomputed
from vsr1.search.record import SearchTrajectory


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


class EvalSummary(Scores):
    """Everything one evaluation reports. Shares are in 0..1, costs are means over the queries that record them."""

    queries: int = named("N")
    failed: dict[str, int]  # by reason, part of `queries`
    corpus_size: int | None
    turns: int = named("T")  # most turns allowed
    fingerprint: str  # of the settings; "" where the rows have none
    settings: dict[str, Any] = Field(
        default_factory=dict
    )  # everything that the fingerprint is over; {} where the rows were scored again
    engine: RetrievalScores  # the first ranking, before any refinement
    refined: RetrievalScores  # the last ranking, after the last refinement if there was one
    refined_by_turn: dict[str, RetrievalScores]  # "1".."T": after so many turns, for a query that ended before its last
    refined_by_depth: dict[str, RetrievalScores]  # "1".."N": after turn 1 with the first latents only; {}: not profiled
    moments: MomentScores
    moments_by_turn: dict[str, MomentScores]  # as `refined_by_turn`
    strict_by_turn: dict[str, TurnScores]  # only the queries that ran the turn
    mean_iou_matched_only: float | None = named("mIoU_matched_only")  # over the queries that matched with a span,
    matched_with_time: int = named("matched_with_time_count")  # of whichever video; so many are they
    verification_final: VerificationScores  # the last turn of each query
    verification_all_turns: VerificationScores
    verification_by_turn: dict[str, VerificationScores]  # "1", "2", …: the queries that got that far
    published: PublishedVerifications
    latent_tokens_per_query: float | None  # all latents decoded, of every turn; None: no row records them
    text_tokens_per_query: float | None  # sampled tokens, the refine token included, latents not
    seconds_per_query: float | None
    turns_per_query: float
    end_reasons: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """Return plain values under the reference's metric names (`R@1`, `MRR`, `IoU@0.5@R1`, …)."""
        return self.model_dump(mode="json", by_alias=True)


def refined_rank(trajectory: SearchTrajectory) -> int:
    """Return the right video's rank in the last ranking made: after the last turn's refinement, else before it."""
    last = trajectory.last.record
    return last.gt_rank_before if last.gt_rank_after is None else last.gt_rank_after


def summarise(
    rows: Sequence[PredictionRow], corpus_size: int | None = None, problems: list[Problem] | None = None
) -> EvalSummary:
    """Evaluate prediction rows, one a query. Derived values are worked out again, and compared with what a row records.

    Args:
        corpus_size: videos searched; without it, what the rows say.
        problems: gets what is wrong with rows: recorded values that differ, or rows of several settings. Without it,
            that is an error.

    Raises:
        ValueError: no rows, or a problem and no list for it.
    """
    if not rows:
        raise ValueError("summarise: no rows were given; check that the evaluation split has queries")
    faults = [problem for row in rows for problem in differences(row)]
    sizes = {row.corpus_size for row in rows if row.corpus_size is not None}
    fingerprints = sorted({row.fingerprint for row in rows if row.fingerprint})
    for name, values in (("corpus_size", sizes), ("fingerprint", fingerprints)):
        if len(values) > 1:
            faults.append(Problem("", name, f"rows of different runs are mixed: {', '.join(map(str, values))}"))
    refined = [row for row in rows if row.turns and row.turns[0].refine_applied]
    unprofiled = [row for row in refined if not row.turns[0].profile_policy_rank_by_depth]
    if len(unprofiled) < len(refined):
        field = "turns.0.profile_policy_rank_by_depth"
        faults += [Problem(row.name, field, "missing, but other rows have it") for row in unprofiled]
    if faults and problems is None:
        raise ValueError(f"summarise: {len(faults)} problems, the first: {faults[0]}")
    if problems is not None:
        problems += faults
    return _summary([recomputed(row) for row in rows], corpus_size or max(sizes, default=None), "+".join(fingerprints))


def _summary(rows: list[PredictionRow], corpus_size: int | None, fingerprint: str) -> EvalSummary:
    played = [row for row in rows if row.status == "ok"]
    last = [row.turns[-1] if row.turns else None for row in rows]
    policy, strict = turns_after(rows), turns_run(rows)
    matched = matched_overlaps(last)
    looks = [(row, turn) for row in rows for turn in (row.turns or (None,))]  # a failed query looked at nothing
    return EvalSummary(
        queries=len(rows),
        failed=dict(Counter(row.reason or "unknown" for row in rows if row.status == "failed").most_common()),
        corpus_size=corpus_size,
        turns=len(policy),
        fingerprint=fingerprint,
        engine=retrieval_scores([row.turns[0].rank if row.turns else None for row in rows]),
        refined=refined_scores(last),
        refined_by_turn={str(number): refined_scores(turns) for number, turns in policy.items()},
        refined_by_depth=_by_depth(policy[1]),
        moments=moment_scores(last),
        moments_by_turn={str(number): moment_scores(turns) for number, turns in policy.items()},
        strict_by_turn={
            str(number): TurnScores(count=len(turns), retrieval=refined_scores(turns), moments=moment_scores(turns))
            for number, turns in strict.items()
            if turns
        },
        mean_iou_matched_only=mean_known(matched),
        matched_with_time=len(matched),
        verification_final=verification_scores(zip(rows, last, strict=True)),
        verification_all_turns=verification_scores(looks),
        verification_by_turn={
            str(number): verification_scores((row, turn) for row, turn in looks if number == (turn.turn if turn else 1))
            for number in sorted({turn.turn if turn else 1 for _, turn in looks})
        },
        published=PublishedVerifications(
            turn1=published_verification((row.turns[0].answer, row.turns[0].top1_is_gt) for row in played),
            final=published_verification((row.turns[-1].answer, row.turns[-1].policy_top1_is_gt) for row in played),
        ),
        latent_tokens_per_query=mean_known(row.latent_tokens for row in played),
        text_tokens_per_query=mean_known(row.text_tokens for row in played),
        seconds_per_query=mean_known(row.seconds for row in played),
        turns_per_query=mean_known(len(row.turns) for row in played) or 0.0,
        end_reasons=dict(Counter(row.end_reason or row.stop_reason or "unknown" for row in played).most_common()),
    )


def _by_depth(turns: list[TurnRow | None]) -> dict[str, RetrievalScores]:
    """Return the scores after turn 1 by latents used; a query that did not refine then has one rank at every depth."""
    profiles = [(turn.profile_policy_rank_by_depth if turn else None) or {} for turn in turns]
    ranks_by_depth = {
        str(depth): [
            profile.get(str(depth), turn.policy_rank) if turn else None
            for turn, profile in zip(turns, profiles, strict=True)
        ]
        for depth in range(1, max(map(len, profiles)) + 1)
    }
    return {depth: retrieval_scores(ranks) for depth, ranks in ranks_by_depth.items()}


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


def recall_at(ranks: Sequence[int | None], k: int) -> float:
    """Return the share of queries whose right video is among the first `k` (VR R@k, data-eval.md §5), in 0..1.

    `k` may exceed the corpus: no rank does, so the result is then the share of queries with a rank.
    """
    return fmean(rank is not None and rank <= k for rank in ranks)


def mrr(ranks: Sequence[int | None]) -> float:
    """Return the mean reciprocal rank, in 0..1."""
    return fmean(0.0 if rank is None else 1.0 / rank for rank in ranks)


def mean_rank(ranks: Sequence[int | None]) -> float | None:
    """Return the mean of the ranks, None without any."""
    known = [rank for rank in ranks if rank is not None]
    return fmean(known) if known else None


def median_rank(ranks: Sequence[int | None]) -> float | None:
    """Return the median of the ranks, the mean of the middle two for an even count; None without any."""
    known = [rank for rank in ranks if rank is not None]
    return float(median(known)) if known else None


def retrieval_scores(ranks: Sequence[int | None]) -> RetrievalScores:
    """Score one rank a query, None of one that failed."""
    recalls = {f"R@{k}": recall_at(ranks, k) for k in (1, 5, 10, 100)}
    means = {"mean_rank": mean_rank(ranks), "median_rank": median_rank(ranks), "MRR": mrr(ranks)}
    return RetrievalScores(**recalls, **means, ranked=sum(rank is not None for rank in ranks))


def refined_scores(turns: Iterable[TurnRow | None]) -> RetrievalScores:
    """Score the ranks after the refinement of a turn a query."""
    return retrieval_scores([turn.policy_rank if turn else None for turn in turns])


def moment_scores(turns: Iterable[TurnRow | None]) -> MomentScores:
    """Score the moment of a turn a query."""
    ious = [turn.iou_r1 or 0.0 if turn else 0.0 for turn in turns]
    shares = {f"IoU@{least}@R1": recall_at_iou(ious, least) for least in (0.3, 0.5, 0.7)}
    return MomentScores(**shares, mean_iou=fmean(ious))


def matched_overlaps(turns: Iterable[TurnRow | None]) -> list[float]:
    """Return the IoU of each turn that matched with a span, on whichever video."""
    return [turn.iou_raw or 0.0 for turn in turns if turn and turn.answer == "matched" and turn.time_parse_ok]


def verification_scores(looks: Iterable[tuple[PredictionRow, TurnRow | None]]) -> VerificationScores:
    """Judge verdicts by the video that was looked at; None stands for a query that failed before its first verdict."""
    counts: Counter[tuple[bool, str] | None] = Counter(
        (turn.looked_at == row.gt_pos_doc_id, turn.answer) if turn else None for row, turn in looks
    )
    correct = counts[True, "matched"] + counts[False, "not_matched"]
    right, wrong = (
        VerdictCounts(**{name: counts[shown_right, name] for name in VerdictCounts.model_fields})
        for shown_right in (True, False)
    )
    judged, failed = counts.total(), counts[None]
    return VerificationScores(
        accuracy=correct / judged, judged=judged, right_video=right, wrong_video=wrong, failed=failed
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
