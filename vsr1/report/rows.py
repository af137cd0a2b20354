"""A trajectory as the page keeps it: what a reader looks at, without token ids, log-probs, latents and noise.

Everything that the page counts or draws is taken from these rows, so a run is read once and its arrays are not kept.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from vsr1.episode.moments import clamp_span, temporal_iou
from vsr1.episode.trajectory import Turn
from vsr1.metrics.summary import refined_rank
from vsr1.rl.credit import Credit
from vsr1.search.record import SearchTrajectory, SearchTurn, moment_iou

TRAINING = "training"  # the source of a trajectory that no evaluation made
DIGITS = 4
SHOWN_RETRIEVED = 10  # of a ranking
Row = dict[str, Any]  # JSON values


def row_of(trajectory: SearchTrajectory, source: str, step: int, credits: list[Credit] | None = None) -> Row:
    """The row of one trajectory.

    Args:
        source: name of the evaluation, or `TRAINING`.
        step: the training step that it was made in; 0 of an evaluation.
        credits: of each turn, where it was trained on them.

    Raises:
        ValueError: the trajectory has no turn.
    """
    if not trajectory.turns:
        raise ValueError(f"report: the trajectory of query {trajectory.task.query_id!r} in {source!r} has no turn")
    return {
        "source": source,
        "step": step,
        "sample": trajectory.id.sample,
        "query_id": trajectory.task.query_id,
        "query": trajectory.task.query,
        "gt_video": trajectory.task.gt_video,
        "gt_span": list(trajectory.task.gt_span),
        "gt_duration": trajectory.task.gt_duration,
        "end": trajectory.end_reason,
        "first_rank": trajectory.turns[0].record.gt_rank_before,
        "last_rank": refined_rank(trajectory),
        "iou": moment_iou(trajectory),
        "outcome": _outcome(trajectory),
        "terms": {name: round(value, DIGITS) for name, value in trajectory.terms.items()},
        "turn_rewards": [round(value, DIGITS) for value in trajectory.turn_rewards],
        "reward": round(trajectory.reward, DIGITS),
        "turns": [
            {**_turn(trajectory, segment), "advantages": {} if credits is None else asdict(credits[index])}
            for index, segment in enumerate(trajectory.turns)
        ],
    }


def _turn(trajectory: SearchTrajectory, segment: Turn[SearchTurn]) -> Row:
    right = segment.record.video_id == trajectory.task.gt_video
    iou = None
    if right and segment.record.span is not None:
        iou = round(
            temporal_iou(clamp_span(segment.record.span, trajectory.task.gt_duration), trajectory.task.gt_span), DIGITS
        )
    return {
        "video": segment.record.video_id,
        "clip": segment.clips[0].content_hash,
        "right": right,
        "verdict": segment.record.verdict,
        "correct": segment.record.verdict == ("matched" if right else "not_matched"),
        "text": segment.text,
        "span": None if segment.record.span is None else list(segment.record.span),
        "iou": iou,
        "refined": segment.record.refined,
        "rewrite": segment.record.rewrite,
        "rank_before": segment.record.gt_rank_before,
        "rank_after": segment.record.gt_rank_after,
        "before": _ranking(segment.record.retrieved),
        "after": None if segment.record.retrieved_after is None else _ranking(segment.record.retrieved_after),
        "text_tokens": len(segment.response_token_ids),
        "latent_tokens": 0 if segment.latents is None else len(segment.latents),
        "seconds": round(segment.seconds, DIGITS),
    }


def _ranking(retrieved: list[tuple[str, float]]) -> list[list[Any]]:
    return [[video, round(score, DIGITS)] for video, score in retrieved[:SHOWN_RETRIEVED]]


def _outcome(trajectory: SearchTrajectory) -> str:
    if trajectory.last.record.verdict != "matched":
        return "not found"
    return "right video" if trajectory.last.record.video_id == trajectory.task.gt_video else "wrong video"
