"""From a trajectory to its row in a prediction file, and to a ranked list of moments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from vsr1.episode.moments import Span, clamp_span
from vsr1.episode.trajectory import Turn
from vsr1.metrics.predictions import PredictionRow, RankedMoment, TurnRow
from vsr1.metrics.rescoring import recomputed
from vsr1.search.record import SearchTrajectory, SearchTurn

HEAD_DIMENSIONS = 6  # of each latent in `rollout_latent_head`
RANKED_MOMENTS = 100


def prediction_row(
    trajectory: SearchTrajectory,
    index: int,
    *,
    max_turns: int,
    corpus_size: int,
    latents: int | None = None,
    fingerprint: str | None = None,
    durations: Mapping[str, float] | None = None,
) -> PredictionRow:
    """Every field of data-eval.md §4.4 and ours; null where this system has no counterpart.

    Args:
        index: position of the query in its split.
        latents: of one refinement, as configured.
        fingerprint: of all settings that the row depends on.
        durations: seconds of every video of the corpus, for `ranked_moments`; null without them.

    Raises:
        ValueError: a trajectory without a turn, a rank outside the corpus, or a video without a duration.
    """
    if not trajectory.turns:
        raise ValueError(f"prediction_row: the trajectory of query {trajectory.task.query_id!r} has no turn; rerun it")
    segments = trajectory.turns
    following = [segment.record.retrieved for segment in segments[1:]] + [None]
    turns = [_turn(segment, after, latents) for segment, after in zip(segments, following, strict=True)]
    row = PredictionRow(
        index=index,
        qid=trajectory.task.query_id,
        query=trajectory.task.query,
        gt_pos_doc_id=trajectory.task.gt_video,
        gt_start=float(trajectory.task.gt_span[0]),
        gt_end=float(trajectory.task.gt_span[1]),
        gt_duration=float(trajectory.task.gt_duration),
        orig_rank=turns[0].rank,
        final_rank=turns[-1].policy_rank,
        stop_reason=_stop_reason(trajectory),
        max_turn=max_turns,
        turns=turns,
        corpus_size=corpus_size,
        text_tokens=sum(turn.text_tokens or 0 for turn in turns),
        latent_tokens=sum(turn.latent_tokens or 0 for turn in turns),
        seconds=sum(turn.seconds or 0.0 for turn in turns),
        end_reason=trajectory.end_reason,
        fingerprint=fingerprint,
        ranked_moments=None if durations is None else ranked_moments(trajectory, durations),
    )
    return recomputed(row)


def failed_row(
    index: int,
    query_id: str,
    query: str,
    reason: str,
    message: str,
    *,
    gt_video: str | None = None,
    gt_span: Span | None = None,
    gt_duration: float | None = None,
    max_turns: int | None = None,
    corpus_size: int | None = None,
    fingerprint: str | None = None,
) -> PredictionRow:
    """A query that could not be evaluated: a skip of data-eval.md §4.3, or a sample that failed with an error."""
    return PredictionRow(
        index=index,
        qid=query_id,
        query=query,
        status="failed",
        reason=reason,
        message=message,
        gt_pos_doc_id=gt_video,
        gt_start=None if gt_span is None else float(gt_span[0]),
        gt_end=None if gt_span is None else float(gt_span[1]),
        gt_duration=gt_duration,
        max_turn=max_turns,
        corpus_size=corpus_size,
        fingerprint=fingerprint,
        ranked_moments=[],
    )


def ranked_moments(trajectory: SearchTrajectory, durations: Mapping[str, float]) -> list[RankedMoment]:
    """At most 100 moments of as many videos, best first; scores fall with the place and mean nothing else.

    The answer leads, if it matched with a span; then come the videos of the last ranking, last of all those that the
    agent rejected. A video's span is the last one the agent gave for it, else the whole video.

    Args:
        durations: seconds of each video.

    Raises:
        ValueError: a video has no duration.
    """
    last = trajectory.last
    spans = {
        segment.record.video_id: segment.record.span for segment in trajectory.turns if segment.record.span is not None
    }
    answer = [last.record.video_id] if last.record.verdict == "matched" and last.record.span is not None else []
    ranking = [
        video
        for video, _ in (last.record.retrieved if last.record.retrieved_after is None else last.record.retrieved_after)
    ]
    rejected = [segment.record.video_id for segment in trajectory.turns if segment.record.verdict != "matched"]
    kept = [video for video in ranking if video not in rejected]
    order = list(dict.fromkeys([*answer, *kept, *(video for video in ranking if video in rejected), *rejected]))
    moments = []
    for place, video in enumerate(order[:RANKED_MOMENTS], start=1):
        if video not in durations:
            raise ValueError(f"ranked_moments: video {video!r} has no duration; give those of the whole corpus")
        start, end = clamp_span(spans.get(video, (0.0, durations[video])), durations[video])
        moments.append((video, float(start), float(end), 1.0 / place))
    return moments


def _turn(segment: Turn[SearchTurn], next_ranking: list[tuple[str, float]] | None, latents: int | None) -> TurnRow:
    after = next_ranking if segment.record.retrieved_after is None else segment.record.retrieved_after
    applied = segment.record.refined and segment.record.gt_rank_after is not None
    policy = segment.record.retrieved if segment.record.gt_rank_after is None else after
    by_depth = segment.record.ranks_by_depth
    span = segment.record.span
    return TurnRow(
        turn=segment.number,
        rank=segment.record.gt_rank_before,
        policy_rank=segment.record.gt_rank_before
        if segment.record.gt_rank_after is None
        else segment.record.gt_rank_after,
        top1_doc_id=segment.record.video_id,
        policy_top1_doc_id=policy[0][0] if policy else None,
        answer=segment.record.verdict,
        pred_start=None if span is None else float(span[0]),
        pred_end=None if span is None else float(span[1]),
        refine_token_generated=segment.latents is not None,
        refine_applied=applied,
        latent_injected_to_llm=applied and segment.latents is not None,
        rollout_depth_config=latents,
        **_latents(segment),
        profile_policy_rank_by_depth=None if by_depth is None else {str(k): r for k, r in enumerate(by_depth, start=1)},
        raw_output=segment.text,
        text_tokens=len(segment.response_token_ids),
        seconds=float(segment.seconds),
        retrieved=[(video, float(score)) for video, score in segment.record.retrieved],
    )


def _latents(segment: Turn[SearchTurn]) -> dict[str, Any]:
    """Sizes, norms [N], cosines of neighbours [N - 1] and first dimensions [N, 6] of the latents [N, R]."""
    if segment.latents is None:
        mode = "none" if segment.record.rewrite is None else "text"
        return {"qfinal_mode": mode, "latent_tokens": 0, "rollout_depth_actual": 0}
    latents_NR = np.asarray(segment.latents, np.float64)
    norms_N = np.linalg.norm(latents_NR, axis=1)
    products = np.maximum(norms_N[:-1] * norms_N[1:], np.finfo(np.float64).tiny)  # the cosine with 0 is 0
    return {
        "qfinal_mode": "query_embedder",
        "latent_tokens": len(latents_NR),
        "rollout_depth_actual": len(latents_NR),
        "rollout_shape": list(latents_NR.shape),
        "rollout_latent_norms": norms_N.tolist(),
        "rollout_latent_cos_prev": (np.sum(latents_NR[:-1] * latents_NR[1:], axis=1) / products).tolist(),
        "rollout_latent_head": latents_NR[:, :HEAD_DIMENSIONS].tolist(),
    }


def _stop_reason(trajectory: SearchTrajectory) -> str:
    """In the published evaluator's words where it has them."""
    last = trajectory.last
    match trajectory.end_reason:
        case "max_turns":
            return "max_turn_reached_with_refine" if last.record.refined else "max_turn_reached"
        case "no_refinement":
            return f"{last.record.verdict}_no_refine_token"
        case other:
            return other
