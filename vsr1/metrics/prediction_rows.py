"""From a trajectory to its row in a prediction file, and to a ranked list of moments.

All that the metrics know of a trajectory goes through here, but for `vsr1.metrics.summary.refined_rank`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from vsr1.episode.moments import clamp_span
from vsr1.episode.trajectory import Turn
from vsr1.metrics.predictions import PredictionRow, RankedMoment, TurnRow
from vsr1.metrics.rescoring import recomputed
from vsr1.search.record import Ranking, SearchTask, SearchTrajectory, SearchTurn

HEAD_DIMENSIONS = 6  # of each latent in `rollout_latent_head`
RANKED_MOMENTS = 100
# Fields of a published turn that have a value for latents only, or no counterpart in this system.
_NULL = dict.fromkeys((
    "rollout_shape", "rollout_latent_norms", "rollout_latent_cos_prev", "rollout_latent_head", "qfinal_forward_mode",
    "qfinal_input_ids_is_none", "qfinal_inputs_embeds_shape", "qfinal_full_attention_shape",
    "profile_policy_top1_doc_by_depth", "profile_policy_top1_is_gt_by_depth",
))  # fmt: skip


def prediction_row(
    trajectory: SearchTrajectory,
    index: int,
    *,
    latents: int | None = None,
    durations: Mapping[str, float] | None = None,
    **shared: Any,
) -> PredictionRow:
    """Return a row with every field of data-eval.md §4.4 and ours; null where this system has no counterpart.

    Args:
        index: position of the query in its split.
        latents: of one refinement, as configured.
        durations: seconds of every video of the corpus, for `ranked_moments`; null without them.
        shared: what all rows of an evaluation have: `max_turn`, `corpus_size` and `fingerprint`.

    Raises:
        ValueError: a rank outside the corpus, or a video without a duration.
    """
    following = [turn.record.retrieved for turn in trajectory.turns[1:]] + [None]
    turns = [_turn(turn, after, latents) for turn, after in zip(trajectory.turns, following, strict=True)]
    row = PredictionRow(
        **_question(trajectory.task, index),
        orig_rank=turns[0].rank,
        final_rank=turns[-1].policy_rank,
        stop_reason=_stop_reason(trajectory),
        turns=turns,
        text_tokens=sum(turn.text_tokens or 0 for turn in turns),
        latent_tokens=sum(turn.latent_tokens or 0 for turn in turns),
        seconds=sum(turn.seconds or 0.0 for turn in turns),
        end_reason=trajectory.end_reason,
        ranked_moments=None if durations is None else ranked_moments(trajectory, durations),
        **shared,
    )
    return recomputed(row)


def failed_row(task: SearchTask, index: int, reason: str, message: str, **shared: Any) -> PredictionRow:
    """Return the row of a query that could not be evaluated: a skip of data-eval.md §4.3, or a sample that failed.

    Args:
        shared: see `prediction_row`.
    """
    failure: dict[str, Any] = {"status": "failed", "reason": reason, "message": message}
    return PredictionRow(**_question(task, index), **failure, **shared, ranked_moments=[])


def ranked_moments(trajectory: SearchTrajectory, durations: Mapping[str, float]) -> list[RankedMoment]:
    """Return at most 100 moments of as many videos, best first; scores fall with the place and mean nothing else.

    The answer leads, if it matched with a span; then come the videos of the last ranking, last of all those that the
    agent rejected. A video's span is the last one the agent gave for it, else the whole video.

    Args:
        durations: seconds of each video.

    Raises:
        ValueError: a video has no duration.
    """
    looks = [turn.record for turn in trajectory.turns]
    last = looks[-1]
    spans = {look.video_id: look.span for look in looks if look.span is not None}
    answer = [last.video_id] if last.verdict == "matched" and last.span is not None else []
    ranking = [video for video, _ in (last.retrieved if last.retrieved_after is None else last.retrieved_after)]
    rejected = [look.video_id for look in looks if look.verdict != "matched"]
    ranking = sorted(ranking, key=lambda video: video in rejected)  # which leaves the order among the others
    order = list(dict.fromkeys([*answer, *ranking, *rejected]))
    moments = []
    for place, video in enumerate(order[:RANKED_MOMENTS], start=1):
        if video not in durations:
            raise ValueError(f"ranked_moments: video {video!r} has no duration; give those of the whole corpus")
        start, end = clamp_span(spans.get(video, (0.0, durations[video])), durations[video])
        moments.append((video, float(start), float(end), 1.0 / place))
    return moments


def _question(task: SearchTask, index: int) -> dict[str, Any]:
    return {
        "index": index,
        "qid": task.query_id,
        "query": task.query,
        "gt_pos_doc_id": task.gt_video,
        "gt_start": float(task.gt_span[0]),
        "gt_end": float(task.gt_span[1]),
        "gt_duration": float(task.gt_duration),
    }


def _turn(turn: Turn[SearchTurn], next_ranking: Ranking | None, depth: int | None) -> TurnRow:
    look, latents = turn.record, turn.latents.get("query")
    applied = look.refined and look.gt_rank_after is not None
    rank, ranking = look.gt_rank_before, look.retrieved
    if look.gt_rank_after is not None:
        rank = look.gt_rank_after
        ranking = look.retrieved_after if look.retrieved_after is not None else next_ranking or []
    by_depth = look.ranks_by_depth
    start, end = look.span or (None, None)
    mode = "text" if look.rewrite is not None else "none"
    return TurnRow(
        turn=turn.number,
        rank=look.gt_rank_before,
        policy_rank=rank,
        top1_doc_id=look.video_id,
        policy_top1_doc_id=ranking[0][0] if ranking else None,
        answer=look.verdict,
        pred_start=None if start is None else float(start),
        pred_end=None if end is None else float(end),
        refine_token_generated=latents is not None,
        refine_applied=applied,
        latent_injected_to_llm=applied and latents is not None,
        rollout_depth_config=depth,
        profile_policy_rank_by_depth=None if by_depth is None else {str(k): r for k, r in enumerate(by_depth, start=1)},
        raw_output=turn.text,
        text_tokens=len(turn.response_token_ids),
        seconds=float(turn.seconds),
        retrieved=[(video, float(score)) for video, score in look.retrieved],
        **_NULL | {"qfinal_mode": mode} | _latents(latents),
    )


def _latents(latents: np.ndarray | None) -> dict[str, Any]:
    """Return sizes, norms [N], cosines of neighbours [N - 1] and first dimensions [N, 6] of the latents [N, R]."""
    if latents is None:
        return {"latent_tokens": 0, "rollout_depth_actual": 0}
    latents_NR = np.asarray(latents, np.float64)
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
    """Return why an episode ended, in the published evaluator's words where it has them."""
    last = trajectory.last.record
    if trajectory.end_reason == "max_turns":
        return "max_turn_reached_with_refine" if last.refined else "max_turn_reached"
    return f"{last.verdict}_no_refine_token" if trajectory.end_reason == "no_refinement" else trajectory.end_reason
