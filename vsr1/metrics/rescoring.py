"""What a prediction row says, worked out again from its ids, verdicts, spans and ranks (data-eval.md §4.4, §5).

One function makes the derived fields; a new row gets them from it, a row read from a file is compared with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vsr1.episode.moments import clamp_span, temporal_iou
from vsr1.metrics.predictions import PredictionRow, Problem, TurnRow

TOLERANCE = 1e-6  # between a recorded number and the same number worked out again

# Fields of a row that repeat a field of its first turn, and of its last one.
_COPIED = ("answer", "time_parse_ok", "pred_start", "pred_end", "iou_raw", "iou_r1")
_FIRST_VIDEO = ("top1_doc_id", "top1_is_gt", "policy_top1_doc_id", "policy_top1_is_gt")
_COPIES_OF_FIRST = {"orig_rank": "rank", "turn1_rank_before_refine": "rank", "turn1_rank": "policy_rank"}
_COPIES_OF_FIRST |= {f"turn1_{name}": name for name in (*_FIRST_VIDEO, *_COPIED)}
_COPIES_OF_LAST = {"final_rank": "policy_rank"} | {f"final_{name}": name for name in _COPIED}
_COPIES_OF_LAST |= {"final_top1_doc_id": "policy_top1_doc_id", "final_top1_is_gt": "policy_top1_is_gt"}


def recomputed(row: PredictionRow) -> PredictionRow:
    """Return the row with every derived field worked out; a failed row has none."""
    if row.status == "failed":
        return row
    turns = [turn.model_copy(update=_of_turn(row, turn)) for turn in row.turns]
    return row.model_copy(update={"turns": turns, **_of_turns(turns)})


def differences(row: PredictionRow) -> list[Problem]:
    """Return recorded values that differ from those worked out; that a row records no turns is a problem of its own."""
    if row.status == "failed":
        return []
    new = recomputed(row)
    pairs = [(f"turns.{number}.", *pair) for number, pair in enumerate(zip(row.turns, new.turns, strict=True))]
    problems = [
        Problem(row.name, prefix + name, f"recorded {recorded}, recomputed {getattr(result, name)}")
        for prefix, source, result in [*pairs, ("", row, new)]
        for name, recorded in source
        if name != "turns" and not _agree(recorded, getattr(result, name))
    ]
    if row.older:
        problems.append(Problem(row.name, "turns", "not recorded; rank, verdict and overlap are taken as they are"))
    return problems


def _agree(recorded: Any, result: Any) -> bool:
    """Tell whether a value is the one worked out, or was not recorded."""
    if recorded is None or recorded is result or recorded == result:
        return True
    return isinstance(recorded, float) and isinstance(result, float | int) and abs(recorded - result) <= TOLERANCE


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
    copies = {name: getattr(turns[0], field) for name, field in _COPIES_OF_FIRST.items()}
    copies |= {name: getattr(turns[-1], field) for name, field in _COPIES_OF_LAST.items()}
    return copies | {
        "matched_turn": next((turn.turn for turn in turns if turn.answer == "matched"), 0),
        "stop_turn": len(turns),
        "used_refine_any": any(turn.refine_applied for turn in turns),
        "refine_token_generated_turns": sum(bool(turn.refine_token_generated) for turn in turns),
        "refine_applied_turns": sum(bool(turn.refine_applied) for turn in turns),
    }
