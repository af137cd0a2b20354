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
from vsr1.navigate.tree import ClipTree
from vsr1.report.navigation import ReportFilms, call_rows, film_row, navigation_row
from vsr1.rl.credit import Credit
from vsr1.search.record import Ranking, SearchTask, SearchTrajectory, SearchTurn, latents_of, moment_iou
from vsr1.search_then_navigate.record import LongSearchTask, LongSearchTrajectory, judgements, visits

TRAINING = "training"  # the source of a trajectory that no evaluation made
DIGITS = 4
SHOWN_RETRIEVED = 10  # of a ranking
Row = dict[str, Any]  # JSON values


def row_of(
    trajectory: Trajectory[Any, Any],
    source: str,
    step: int,
    credits: Sequence[Credit] | None = None,
    films: ReportFilms | None = None,
) -> Row:
    """Return the row of one trajectory, of any environment.

    Args:
        source: name of the evaluation, or `TRAINING`.
        step: the training step that it was made in; 0 of an evaluation.
        credits: of each turn, where it was trained on them.
        films: that were navigated; None: nobody can be asked about them.

    Raises:
        ValueError: the trajectory has no turn.
    """
    if not trajectory.turns:
        raise ValueError(f"report: the trajectory of prompt {trajectory.id.prompt!r} in {source!r} has no turn")
    row = _row_of_kind(trajectory, films)
    for place, (turn, values) in enumerate(zip(trajectory.turns, row["turns"], strict=True)):
        values |= {
            "text": turn.text,
            "text_tokens": len(turn.response_token_ids),
            "latent_tokens": latents_of(turn),
            "seconds": round(turn.seconds, DIGITS),
            "advantages": {} if credits is None else asdict(credits[place]),
        }
        if "tool" in values:
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


def _row_of_kind(trajectory: Trajectory[Any, Any], films: ReportFilms | None) -> Row:
    match trajectory.task:
        case NavigateTask():
            return navigation_row(trajectory, films)
        case LongSearchTask():
            return _long_search_row(trajectory, films)
        case _:
            return _search_row(trajectory)


def _long_search_row(trajectory: LongSearchTrajectory, films: ReportFilms | None) -> Row:
    """Return the row of a search whose turns are calls too, with what is drawn of each film that was navigated.

    The tree of a wrong film is known from its dataset alone.
    """
    task, row = trajectory.task, _search_row(judgements(trajectory))
    turns, navigated, left = list[Row](), list[Row](), task.budget
    for visit, judged in zip(visits(trajectory), row["turns"], strict=True):
        film, first = judged["video"], len(turns)
        turns += [*call_rows(film, visit.calls, [*visit.calls, visit.judgement], films), judged]
        tree = ClipTree.of(task.gt_duration) if judged["right"] else None
        tree = films.tree(film) if films is not None and judged["clip"] is None else tree
        if judged["clip"] is None and tree is not None:
            clues = [list(task.gt_span)] if judged["right"] else []
            values = {"first": first, "last": len(turns) - 1, "budget": left, "clues": clues}
            navigated.append(values | film_row(film, tree, visit.calls, films))
        left = visit.calls[-1].record.left if visit.calls else left
    name = f"{task.query_id}@{task.budget:g}"
    row |= {"kind": "search_then_navigate", "query_id": name, "budget": task.budget}
    return row | {"turns": turns, "films": navigated}


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
        "clip": next((clip.content_hash for clip in turn.clips if clip.video_id == look.video_id), None),
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
