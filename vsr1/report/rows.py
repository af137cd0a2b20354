"""A trajectory as the page keeps it: what a reader looks at, without token ids, log-probs and latents.

Everything that the page counts or draws is taken from these rows, so a run is read once and its arrays are not kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from vsr1.episode.moments import clamp_span, moment_iou, temporal_iou
from vsr1.episode.trajectory import Segment, Trajectory
from vsr1.metrics.summary import refined_rank
from vsr1.rl.credit import Credit

TRAINING = "training"  # the source of a trajectory that no evaluation made
DIGITS = 4
SHOWN_RETRIEVED = 10  # of a ranking
Row = dict[str, Any]  # JSON values


def row_of(trajectory: Trajectory, source: str, step: int, credits: Sequence[Credit] | None = None) -> Row:
    """Return the row of one trajectory.

    Args:
        source: name of the evaluation, or `TRAINING`.
        step: the training step that it was made in; 0 of an evaluation.
        credits: of each turn, where it was trained on them.

    Raises:
        ValueError: the trajectory has no turn.
    """
    if not trajectory.segments:
        raise ValueError(f"report: the trajectory of query {trajectory.query_id!r} in {source!r} has no turn")
    turns = [_turn(trajectory, segment) for segment in trajectory.segments]
    if credits is not None:
        for turn, credit in zip(turns, credits, strict=True):
            turn["advantages"] = asdict(credit)
    last = turns[-1]
    found = "right video" if last["right"] else "wrong video"
    return {
        "source": source,
        "step": step,
        "sample": trajectory.sample,
        "query_id": trajectory.query_id,
        "query": trajectory.query,
        "gt_video": trajectory.gt_video,
        "gt_span": list(trajectory.gt_span),
        "gt_duration": trajectory.gt_duration,
        "end": trajectory.end_reason,
        "first_rank": turns[0]["rank_before"],
        "last_rank": refined_rank(trajectory),
        "iou": moment_iou(trajectory),
        "outcome": found if last["verdict"] == "matched" else "not found",
        "terms": {name: round(value, DIGITS) for name, value in trajectory.terms.items()},
        "turn_rewards": [round(value, DIGITS) for value in trajectory.turn_rewards],
        "reward": round(trajectory.reward, DIGITS),
        "turns": turns,
    }


def _turn(trajectory: Trajectory, segment: Segment) -> Row:
    right = segment.video_id == trajectory.gt_video
    iou = None
    if right and segment.span is not None:
        iou = round(temporal_iou(clamp_span(segment.span, trajectory.gt_duration), trajectory.gt_span), DIGITS)
    return {
        "video": segment.video_id,
        "clip": segment.clip_hash,
        "right": right,
        "verdict": segment.verdict,
        "correct": segment.verdict == ("matched" if right else "not_matched"),
        "text": segment.text,
        "span": segment.span,
        "iou": iou,
        "refined": segment.refined,
        "rewrite": segment.rewrite,
        "rank_before": segment.gt_rank_before,
        "rank_after": segment.gt_rank_after,
        "before": _ranking(segment.retrieved),
        "after": None if segment.retrieved_after is None else _ranking(segment.retrieved_after),
        "text_tokens": len(segment.response_token_ids),
        "latent_tokens": 0 if segment.latents is None else len(segment.latents),
        "seconds": round(segment.seconds, DIGITS),
        "advantages": {},
    }


def _ranking(retrieved: list[tuple[str, float]]) -> list[list[Any]]:
    return [[video, round(score, DIGITS)] for video, score in retrieved[:SHOWN_RETRIEVED]]
