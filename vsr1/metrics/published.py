"""The published evaluator's summary of prediction rows, under its names (data-eval.md §4.4), for tools that read it.

Its denominators are its own: rows that failed are left out of all but `rows_total` and `skip`. `EvalSummary` is ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from vsr1.metrics.predictions import PredictionRow, TurnRow
from vsr1.metrics.rescoring import recomputed
from vsr1.metrics.summary import matched_overlaps, mean_known, moment_scores, retrieval_scores, turns_after, turns_run

_RANKS = ("mean_rank", "median_rank", "R@1", "R@5", "R@10", "R@100")


def published_summary(rows: Sequence[PredictionRow]) -> dict[str, Any]:
    """Return plain values. Differences are of the final state less turn 1; a part without rows holds only its count."""
    played = [recomputed(row) for row in rows if row.status == "ok"]
    first, last = [row.turns[0] for row in played], [row.turns[-1] for row in played]
    policy, strict = turns_after(played), turns_run(played)
    return {
        "rows_total": len(rows),
        "rows_valid": len(played),
        "skip": dict(Counter(row.reason or "unknown" for row in rows if row.status == "failed")),
        "answer_counts": dict(Counter(turn.answer for turn in last)),
        "stop_reason_counts": dict(Counter(row.stop_reason or "unknown" for row in played)),
        "matched_by_turn": dict(Counter(str(row.matched_turn) for row in played if row.matched_turn)),
        "refine": {
            "samples_with_refine": sum(bool(row.used_refine_any) for row in played),
            "refine_token_generated_turns": sum(row.refine_token_generated_turns or 0 for row in played),
            "refine_applied_turns": sum(row.refine_applied_turns or 0 for row in played),
        },
        "retrieval": {"orig_query": _ranks([turn.rank for turn in first])}
        | _change(_retrieval(first), _retrieval(last)),
        "retrieval_policy_by_turn": {f"policy@{number}": _retrieval(turns) for number, turns in policy.items()},
        "retrieval_strict_by_turn": {f"turn{number}": _retrieval(turns) for number, turns in strict.items()},
        "temporal": _change(_temporal(first), _temporal(last)),
        "temporal_policy_by_turn": {f"policy@{number}": _temporal(turns) for number, turns in policy.items()},
        "temporal_strict_by_turn": {f"turn{number}": _temporal(turns) for number, turns in strict.items()},
    }


def _ranks(ranks: Sequence[int | None]) -> dict[str, Any]:
    if not ranks:
        return {"count": 0}
    scores = retrieval_scores(ranks).model_dump(by_alias=True)
    return {"count": len(ranks), "mrr": scores["MRR"]} | {name: scores[name] for name in _RANKS}


def _retrieval(turns: Sequence[TurnRow | None]) -> dict[str, Any]:
    return _ranks([turn.policy_rank if turn else None for turn in turns])


def _temporal(turns: Sequence[TurnRow | None]) -> dict[str, Any]:
    if not turns:
        return {"count": 0}
    matched = matched_overlaps(turns)
    counts = {"count": len(turns), "matched_with_time_count": len(matched), "mIoU_matched_only": mean_known(matched)}
    return counts | moment_scores(turns).model_dump(by_alias=True)


def _change(first: dict[str, Any], last: dict[str, Any]) -> dict[str, Any]:
    shared = (name for name in last if name != "count" and last[name] is not None and first.get(name) is not None)
    return {
        "turn1": first,
        "final": last,
        "delta_final_minus_turn1": {name: last[name] - first[name] for name in shared},
    }
