"""A trajectory as the page keeps it: what a reader looks at, without token ids, log-probs and latents.

Everything that the page counts or draws is taken from these rows, so a run is read once and its arrays are not kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from vsr1.episode.moments import clamp_span, temporal_iou
from vsr1.episode.trajectory import Trajectory, Turn
from vsr1.metrics.summary import refined_rank
from vsr1.navigate.record import NavigateTask
from vsr1.report.navigation import Said, navigation_row
from vsr1.rl.credit import Credit
from vsr1.search.record import Ranking, SearchTask, SearchTrajectory, SearchTurn, latents_of, moment_iou

TRAINING = "training"  # the source of a trajectory that no evaluation made
DIGITS = 4
SHOWN_RETRIEVED = 10  # of a ranking
Row = dict[str, Any]  # JSON values


def row_of(
    trajectory: Trajectory[Any, Any],
    source: str,
    step: int,
    credits: Sequence[Credit] | None = None,
    said: Said = lambda call: None,
) -> Row:
    """Return the row of one trajectory, of either environment.

    Args:
        source: name of the evaluation, or `TRAINING`.
        step: the training step that it was made in; 0 of an evaluation.
        credits: of each turn, where it was trained on them.
        said: what the tools of navigation have said.

    Raises:
        ValueError: the trajectory has no turn.
    """
    if not trajectory.turns:
        raise ValueError(f"report: the trajectory of prompt {trajectory.id.prompt!r} in {source!r} has no turn")
    navigates = isinstance(trajectory.task, NavigateTask)
    row = navigation_row(trajectory, said) if navigates else _search_row(trajectory)
    for place, (turn, values) in enumerate(zip(trajectory.turns, row["turns"], strict=True)):
        values |= {
            "text": turn.text,
            "text_tokens": len(turn.response_token_ids),
            "latent_tokens": latents_of(turn),
            "seconds": round(turn.seconds, DIGITS),
            "advantages": {} if credits is None else asdict(credits[place]),
        }
        if navigates:
            values["advantages"].pop("latents", None)
    return row | {
        "source": source,
        "step": step,
        "sample": trajectory.id.sample,
        "end": trajectory.end_reason,
        "terms": {name: round(value, DIGITS) for name, value in trajectory.terms.items()},
        "turn_rewards": [round(value, DIGITS) for value in trajectory.turn_rewards],
        "reward": round(trajectory.reward, DIGITS),
    }


def _search_row(trajectory: SearchTrajectory) -> Row:
    task = trajectory.task
    turns = [_turn(task, turn) for turn in trajectory.turns]
    last = turns[-1]
    accepted = "right video" if last["right"] else "wrong video"
    return {
        "kind": "search",
        "query_id": task.query_id,
        "query": task.query,
        "gt_video": task.gt_video,
        "gt_span": list(task.gt_span),
        "gt_duration": task.gt_duration,
        "first_rank": turns[0]["rank_before"],
        "last_rank": refined_rank(trajectory),
        "iou": moment_iou(trajectory),
        "outcome": accepted if last["verdict"] == "matched" else "not found",
        "turns": turns,
    }


def _turn(task: SearchTask, turn: Turn[SearchTurn]) -> Row:
    look = turn.record
    right = look.video_id == task.gt_video
    iou = None
    if right and look.span is not None:
        iou = round(temporal_iou(clamp_span(look.span, task.gt_duration), task.gt_span), DIGITS)
    return {
        "video": look.video_id,
        "clip": turn.clips[0].content_hash,
        "right": right,
        "verdict": look.verdict,
        "correct": look.verdict == ("matched" if right else "not_matched"),
        "span": look.span,
        "iou": iou,
        "refined": look.refined,
        "rewrite": look.rewrite,
        "rank_before": look.gt_rank_before,
        "rank_after": look.gt_rank_after,
        "before": _ranking(look.retrieved),
        "after": None if look.retrieved_after is None else _ranking(look.retrieved_after),
    }


def _ranking(retrieved: Ranking) -> list[list[Any]]:
    return [[video, round(score, DIGITS)] for video, score in retrieved[:SHOWN_RETRIEVED]]
