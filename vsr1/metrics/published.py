"""The published evaluator's summary of prediction rows, under its names (data-eval.md §4.4), for tools that read it.

Its denominators are its own: rows that failed are left out of all but `rows_total` and `skip`. `EvalSummary` is ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from vsr1.metrics.predictions import PredictionRow, TurnRow
from vsr1.metrics.rescoring import recomputed
from vsr1.metrics.scores import mean_known, moment_scores, retrieval_scores

_RANKS = ("mean_rank", "median_rank", "R@1", "R@5", "R@10", "R@100")


def published_summary(rows: Sequence[PredictionRow]) -> dict[str, Any]:
    """Plain values. Differences are of the final state less turn 1; a part without rows holds only its count.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("published_summary: no rows were given; check that the evaluation split has queries")
    played = [recomputed(row) for row in rows if row.status == "ok"]
    most = max([row.max_turn or 0 for row in played] + [len(row.turns) for row in played], default=0)
    first, last = [row.turns[0] for row in played], [row.turns[-1] for row in played]
    policy = {turn: [row.turns[min(turn, len(row.turns)) - 1] for row in played] for turn in range(1, most + 1)}
    strict = {turn: [row.turns[turn - 1] for row in played if len(row.turns) >= turn] for turn in policy}
    retrieval = {
        "orig_query": _retrieval([turn.rank for turn in first]),
        "turn1": _refined(first),
        "final": _refined(last),
    }
    temporal = {"turn1": _temporal(first), "final": _temporal(last)}
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
        "retrieval": retrieval | {"delta_final_minus_turn1": _difference(retrieval["final"], retrieval["turn1"])},
        "retrieval_policy_by_turn": {
            f"policy@{t}": _retrieval([x.policy_rank for x in at]) for t, at in policy.items()
        },
        "retrieval_strict_by_turn": {f"turn{turn}": _refined(at) for turn, at in strict.items()},
        "temporal": temporal | {"delta_final_minus_turn1": _difference(temporal["final"], temporal["turn1"])},
        "temporal_policy_by_turn": {f"policy@{turn}": _temporal(at) for turn, at in policy.items()},
        "temporal_strict_by_turn": {f"turn{turn}": _temporal(at) for turn, at in strict.items()},
    }


def _retrieval(ranks: list[int]) -> dict[str, Any]:
    if not ranks:
        return {"count": 0}
    scores = retrieval_scores(ranks).model_dump(by_alias=True)
    return {"count": len(ranks), "mrr": scores["MRR"]} | {name: scores[name] for name in _RANKS}


def _refined(turns: list[TurnRow]) -> dict[str, Any]:
    return _retrieval([turn.policy_rank for turn in turns])


def _temporal(turns: list[TurnRow]) -> dict[str, Any]:
    if not turns:
        return {"count": 0}
    matched = [turn.iou_raw or 0.0 for turn in turns if turn.answer == "matched" and turn.time_parse_ok]
    own = {"matched_with_time_count": len(matched), "mIoU_matched_only": mean_known(matched)}
    return {"count": len(turns)} | own | moment_scores(turns).model_dump(by_alias=True)


def _difference(final: dict[str, Any], first: dict[str, Any]) -> dict[str, float]:
    shared = (name for name in final if name != "count" and final[name] is not None and first.get(name) is not None)
    return {name: final[name] - first[name] for name in shared}
