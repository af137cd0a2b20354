"""Prediction rows: every published field from a trajectory, the ranked moments, and files with faults."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from search_episodes import search_trajectory, search_turn

from vsr1.episode.moments import Span
from vsr1.episode.sample import SampleId
from vsr1.episode.trajectory import Turn
from vsr1.metrics.prediction_rows import failed_row, prediction_row, ranked_moments
from vsr1.metrics.predictions import PredictionError, PredictionRow, read_predictions
from vsr1.metrics.rescoring import differences, recomputed
from vsr1.search.record import SearchTask, SearchTrajectory, SearchTurn, Verdict

ROW_FIELDS = """
index qid query gt_pos_doc_id gt_start gt_end orig_rank turn1_rank turn1_rank_before_refine
turn1_top1_doc_id turn1_top1_is_gt turn1_policy_top1_doc_id turn1_policy_top1_is_gt turn1_answer turn1_time_parse_ok
turn1_pred_start turn1_pred_end turn1_iou_raw turn1_iou_r1 final_rank final_top1_doc_id final_top1_is_gt final_answer
final_time_parse_ok final_pred_start final_pred_end final_iou_raw final_iou_r1 matched_turn stop_turn stop_reason
used_refine_any refine_token_generated_turns refine_applied_turns max_turn turns"""
TURN_FIELDS = """
turn rank rank_before_refine policy_rank top1_doc_id top1_is_gt policy_top1_doc_id policy_top1_is_gt
answer time_parse_ok pred_start pred_end iou_raw iou_r1 refine_token_generated refine_applied qfinal_mode
rollout_depth_config rollout_depth_actual rollout_shape rollout_latent_norms rollout_latent_cos_prev
rollout_latent_head latent_injected_to_llm qfinal_forward_mode qfinal_input_ids_is_none qfinal_inputs_embeds_shape
qfinal_full_attention_shape profile_policy_rank_by_depth profile_policy_top1_doc_by_depth
profile_policy_top1_is_gt_by_depth raw_output"""


def look(
    turn: int, video: str, verdict: Verdict, ranks: tuple[int, int | None], ranking: str, after: str | None = None,
    span: Span | None = None,
) -> Turn[SearchTurn]:  # fmt: skip
    latents = None if after is None else np.array([[3, 4, 0, 0, 0, 0, 0], [4, 3, 0, 0, 0, 0, 1]], np.float32)
    scored, then = ([(name, 0.5) for name in names or ""] for names in (ranking, after))
    return search_turn(
        turn, video, verdict, span, text=f"turn {turn}", tokens=10, latents=latents, retrieved=scored, ranks=ranks,
        seconds=0.5, retrieved_after=None if after is None else then, ranks_by_depth=None if after is None else [3, 2],
    )  # fmt: skip


def two_turns() -> SearchTrajectory:
    """Rejects a, refines, accepts b with a span that ends after the video."""
    turns = [
        look(1, "a", "not_matched", (4, 2), "acd", "cbd"),
        look(2, "b", "matched", (2, None), "cbd", span=(10.0, 99.0)),
    ]
    return search_trajectory("7_fig", turns, query="a ring", gt=("b", (10.0, 20.0), 30.0))


def row_of(trajectory: SearchTrajectory, **changes: Any) -> PredictionRow:
    return prediction_row(trajectory, 3, **{"max_turn": 3, "corpus_size": 9, "latents": 2, **changes})


def test_every_published_field_is_written() -> None:
    row = row_of(two_turns(), fingerprint="f", durations=dict.fromkeys("abcd", 30.0))
    values = json.loads(row.model_dump_json())
    assert set(ROW_FIELDS.split()) <= set(values)
    first, second = values["turns"]
    assert set(TURN_FIELDS.split()) <= set(first)
    assert {name: first[name] for name in ("rank", "policy_rank", "top1_doc_id", "policy_top1_doc_id", "answer")} == {
        "rank": 4, "policy_rank": 2, "top1_doc_id": "a", "policy_top1_doc_id": "c", "answer": "not_matched",
    }  # fmt: skip
    assert (first["top1_is_gt"], first["refine_token_generated"], first["refine_applied"]) == (False, True, True)
    assert (first["qfinal_mode"], first["rollout_shape"], first["rollout_depth_config"]) == (
        "query_embedder",
        [2, 7],
        2,
    )
    assert first["rollout_latent_norms"] == pytest.approx([5.0, math.sqrt(26)])
    assert first["rollout_latent_cos_prev"] == pytest.approx([24 / (5 * math.sqrt(26))])
    assert first["rollout_latent_head"] == [[3, 4, 0, 0, 0, 0], [4, 3, 0, 0, 0, 0]]
    assert first["profile_policy_rank_by_depth"] == {"1": 3, "2": 2}
    assert (first["verdict_correct"], first["text_tokens"], first["latent_tokens"]) == (True, 10, 2)
    assert (second["iou_raw"], second["iou_r1"], second["pred_end"]) == (0.5, 0.5, 99.0)  # [10, 30] of [10, 20]
    assert (second["policy_rank"], second["policy_top1_doc_id"], second["qfinal_mode"]) == (2, "c", "none")
    assert (values["orig_rank"], values["turn1_rank"], values["final_rank"]) == (4, 2, 2)
    assert (values["final_iou_r1"], values["matched_turn"], values["stop_turn"]) == (0.5, 2, 2)
    assert (values["stop_reason"], values["refine_applied_turns"], values["max_turn"]) == ("matched", 1, 3)
    assert (values["text_tokens"], values["seconds"], values["corpus_size"]) == (20, 1.0, 9)
    assert PredictionRow.model_validate_json(row.model_dump_json()) == row
    assert differences(row) == []


def test_ranking_after_the_refinement_comes_from_the_next_turn_where_it_was_not_kept() -> None:
    trajectory = two_turns()
    trajectory.turns[0].record.retrieved_after = None
    assert row_of(trajectory).turns[0].policy_top1_doc_id == "c"


def test_ranked_moments_lead_with_the_answer_and_end_with_the_rejected() -> None:
    durations = {"a": 30.0, "b": 30.0, "c": 40.0, "d": 50.0}
    moments = ranked_moments(two_turns(), durations)
    assert [moment[:3] for moment in moments] == [("b", 10, 30), ("c", 0, 40), ("d", 0, 50), ("a", 0, 30)]
    assert [score for *_, score in moments] == sorted({score for *_, score in moments}, reverse=True)
    trajectory = two_turns()
    trajectory.turns[1].record.verdict = "unknown"  # rejected: behind those never looked at, in the ranking's order
    assert [moment[:3] for moment in ranked_moments(trajectory, durations)] == [
        ("c", 0, 40), ("d", 0, 50), ("b", 10, 30), ("a", 0, 30),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="'d' has no duration"):
        ranked_moments(trajectory, {name: 9.0 for name in "abc"})
    trajectory.last.record.retrieved = [(f"v{i}", 0.0) for i in range(200)]
    assert len(ranked_moments(trajectory, durations | {f"v{i}": 1.0 for i in range(200)})) == 100


def reference(qid: str, **changes: Any) -> dict[str, Any]:
    """A row as the published evaluator writes it: only its own fields."""
    turn = {
        "turn": 1, "rank": 1, "rank_before_refine": 1, "policy_rank": 1, "top1_doc_id": "right", "top1_is_gt": True,
        "policy_top1_doc_id": "right", "policy_top1_is_gt": True, "answer": "matched", "time_parse_ok": True, "new": 0,
        "pred_start": 10.0, "pred_end": 20.0, "iou_raw": 1.0, "iou_r1": 1.0, "rollout_shape": [],
    }  # fmt: skip
    row = {
        "index": int(qid.removesuffix("_fig")), "qid": qid, "query": "q", "gt_pos_doc_id": "right", "gt_start": 10.0,
        "gt_end": 20.0, "orig_rank": 1, "final_rank": 1, "final_iou_r1": 1.0, "max_turn": 2, "turns": [turn],
    }  # fmt: skip
    return row | changes


def file_of(path: Path, *lines: dict[str, Any] | str) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def test_each_fault_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    path = file_of(
        tmp_path / "p.jsonl",
        reference("0_fig"),
        reference("1_fig", gt_end=math.nan),
        reference("2_fig", orig_rank="1"),
        reference("3_fig", final_rank=None),
        "",
        reference("0_fig", query="again"),
        reference("4_fig", turns=[{**reference("4_fig")["turns"][0], "turn": 2}]),
        reference("5_fig", corpus_size=0),
        json.dumps(reference("6_fig"))[:-40],
    )
    rows, problems = read_predictions(path)
    assert [(row.qid, row.query) for row in rows] == [("0_fig", "again")]
    assert [str(problem).split(";")[0] for problem in problems[:-1]] == [
        "line 2: qid 1_fig: gt_end: Input should be a finite number",
        "line 3: qid 2_fig: orig_rank: Input should be a valid integer",
        "line 4: qid 3_fig: final_rank: missing",
        "line 6: qid 0_fig: qid: also on line 1",
        "line 7: qid 4_fig: turns.0.turn: 2, but it is turn 1 of the list",
        "line 8: qid 5_fig: turn 1: rank 1 is outside 1..0, the videos that were searched",
    ]
    assert (problems[-1].line, problems[-1].query) == (9, "qid 6_fig")
    assert "was the file cut off?" in str(problems[-1])


def test_rows_without_a_qid_go_by_their_index(tmp_path: Path) -> None:
    lines = [{**reference(f"{i}_fig"), "qid": None} for i in (0, 1, 0)]
    rows, [problem] = read_predictions(file_of(tmp_path / "p.jsonl", *lines))
    assert ([row.index for row in rows], problem.query) == ([1, 0], "index 0")


def test_older_rows_are_read_by_the_published_fallbacks(tmp_path: Path) -> None:
    older = {"index": 0, "gt_pos_doc_id": "right", "orig_rank": 5, "rank": 2, "iou": 0.4, "answer": "matched"}
    [row], _ = read_predictions(file_of(tmp_path / "p.jsonl", older))
    again = recomputed(row)
    assert (again.orig_rank, again.final_rank, again.final_iou_r1, again.final_answer) == (5, 2, 0.4, "matched")
    assert [str(problem).split(";")[0] for problem in differences(row)] == ["index 0: turns: not recorded"]
    newer = {**older, "final_rank": 3, "final_iou_r1": 0.6, "iou_r1": 0.5}
    [row], _ = read_predictions(file_of(tmp_path / "p.jsonl", newer))
    assert (row.turns[0].policy_rank, row.turns[0].iou_r1) == (3, 0.6)


def test_recorded_values_that_differ_are_named() -> None:
    turn = {**reference("1_fig")["turns"][0], "iou_r1": 0.61, "pred_start": 15.0, "iou_raw": 0.5 + 1e-9}
    row = PredictionRow.model_validate_json(json.dumps(reference("1_fig", turns=[turn], final_rank=2)))
    assert [str(problem) for problem in differences(row)] == [
        "qid 1_fig: turns.0.iou_r1: recorded 0.61, recomputed 0.5",
        "qid 1_fig: final_rank: recorded 2, recomputed 1",
        "qid 1_fig: final_iou_r1: recorded 1.0, recomputed 0.5",
    ]


def test_sequential_rows_are_judged_on_the_selected_video() -> None:
    turn = {**reference("1_fig")["turns"][0], "selected_doc_id_for_generation": "other"}
    row = recomputed(PredictionRow.model_validate_json(json.dumps(reference("1_fig", turns=[turn]))))
    assert (row.turns[0].iou_raw, row.turns[0].iou_r1, row.turns[0].verdict_correct) == (1.0, 0.0, False)


def test_a_failed_row_comes_back(tmp_path: Path) -> None:
    row = failed_row(
        SearchTask(SampleId("2_fig"), "2_fig", "q", "v", (1, 2), 9.0), 2, "ClipError", "no frames", max_turn=2
    )
    [back], problems = read_predictions(file_of(tmp_path / "p.jsonl", row.model_dump_json()))
    assert (back, problems, differences(back)) == (row, [], [])


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PredictionError, match="does not exist"):
        read_predictions(tmp_path / "none.jsonl")
    with pytest.raises(PredictionError, match="it is empty"):
        read_predictions(file_of(tmp_path / "p.jsonl", ""))
    with pytest.raises(PredictionError, match=r"the first of 1 problems: line 1: whole line"):
        read_predictions(file_of(tmp_path / "p.jsonl", "{"))
