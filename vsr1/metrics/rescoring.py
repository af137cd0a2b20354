"""What a prediction row says, worked out again from its ids, verdicts, spans and ranks (data-eval.md §4.4, §5).

One function makes the derived fields; a new row gets them from it, a row read from a file is compared with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vsr1.episode.moments import clamp_span, temporal_iou
from vsr1.metrics.predictions import PredictionRow, Problem, TurnRow

TOLERANCE = 1e-6  # between a recorded number and the same number worked out again


def recomputed(row: PredictionRow) -> PredictionRow:
    """The row with every derived field worked out; a failed row has none."""
    if row.status == "failed":
        return row
    turns = [turn.model_copy(update=_of_turn(row, turn)) for turn in row.turns]
    return row.model_copy(update={"turns": turns, **_of_turns(turns)})


def differences(row: PredictionRow) -> list[Problem]:
    """Recorded values that differ from those worked out; a row without recorded turns is one problem of its own."""
    if row.status == "failed":
        return []
    new = recomputed(row)
    found = [
        Problem(row.name, f"turns.{number}.{name}", text)
        for number, (was, now) in enumerate(zip(row.turns, new.turns, strict=True))
        for name, text in _different(was, now, _of_turn(row, was))
    ]
    found += [Problem(row.name, name, text) for name, text in _different(row, new, _of_turns(new.turns))]
    if row.older:
        found.append(Problem(row.name, "turns", "not recorded; rank, verdict and overlap are taken as they are"))
    return found


def _of_turn(row: PredictionRow, turn: TurnRow) -> dict[str, Any]:
    right = turn.looked_at == row.gt_pos_doc_id
    iou = _iou(row, turn)
    if turn.policy_top1_doc_id is not None:
        policy_is_right = turn.policy_top1_doc_id == row.gt_pos_doc_id
    else:
        policy_is_right = turn.policy_rank == 1 if turn.policy_top1_is_gt is None else turn.policy_top1_is_gt
    return {
        "rank_before_refine": turn.rank,
        "top1_is_gt": turn.top1_doc_id == row.gt_pos_doc_id,
        "policy_top1_is_gt": policy_is_right,
        "time_parse_ok": turn.span is not None,
        "iou_raw": turn.iou_raw if iou is None else iou,
        "iou_r1": turn.iou_r1 if iou is None else iou if right else 0.0,
        "verdict_correct": turn.answer != "unknown" and (turn.answer == "matched") == right,
    }


def _iou(row: PredictionRow, turn: TurnRow) -> float | None:
    """Overlap if the turn says "matched" with a span, on whichever video, else 0; None where nothing tells.

    The predicted span is clamped to the right video's duration where that is recorded, and put in order.
    """
    span, gt_span = turn.span, row.gt_span
    if row.older and (span is None or gt_span is None):
        return None
    if turn.answer != "matched" or span is None or gt_span is None:
        return 0.0
    longest = max(*span, *gt_span, 1.0) if row.gt_duration is None else row.gt_duration
    return temporal_iou(clamp_span(span, longest), gt_span)


def _of_turns(turns: Sequence[TurnRow]) -> dict[str, Any]:
    first, last = turns[0], turns[-1]
    copied = ("time_parse_ok", "pred_start", "pred_end", "iou_raw", "iou_r1", "answer")
    return {
        "orig_rank": first.rank,
        "turn1_rank": first.policy_rank,
        "turn1_rank_before_refine": first.rank,
        "turn1_top1_doc_id": first.top1_doc_id,
        "turn1_top1_is_gt": first.top1_is_gt,
        "turn1_policy_top1_doc_id": first.policy_top1_doc_id,
        "turn1_policy_top1_is_gt": first.policy_top1_is_gt,
        **{f"turn1_{name}": getattr(first, name) for name in copied},
        "final_rank": last.policy_rank,
        "final_top1_doc_id": last.policy_top1_doc_id,
        "final_top1_is_gt": last.policy_top1_is_gt,
        **{f"final_{name}": getattr(last, name) for name in copied},
        "matched_turn": next((turn.turn for turn in turns if turn.answer == "matched"), 0),
        "stop_turn": len(turns),
        "used_refine_any": any(turn.refine_applied for turn in turns),
        "refine_token_generated_turns": sum(bool(turn.refine_token_generated) for turn in turns),
        "refine_applied_turns": sum(bool(turn.refine_applied) for turn in turns),
    }


def _different(was: Any, now: Any, names: dict[str, Any]) -> list[tuple[str, str]]:
    found = []
    for name in names:
        old, new = getattr(was, name), getattr(now, name)
        if old is None or old == new:
            continue
        if isinstance(old, float) and new is not None and abs(old - new) <= TOLERANCE:
            continue
        found.append((name, f"recorded {old}, recomputed {new}"))
    return found
