"""`vsr1 score` and `vsr1 export` on a file that holds every trap, with the values worked out by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from vsr1.episode.sample import SampleId
from vsr1.metrics.prediction_rows import failed_row
from vsr1.metrics.summary import EvalSummary
from vsr1.search.record import SearchTask

# Every query: video "right", 10 s to 20 s. Kept: 8 queries, one of them failed.
TRAPS = """
 qid  what                                                    rank before, after  IoU   verdict right  published final
 1    matched, the right span                                 1  1                1     yes            matched, right
 2    unknown, on the right video                             1  1                0     no             left out
 3    rejects a wrong video, refinement brings the right one  4  1                0     yes            rejected, wrong
 4    matched, a span of no length                            1  1                0     yes            matched, right
 5    matched, a span beyond the 30 s of the video            1  1                0.5   yes            matched, right
 6    failed                                                  -  -                0     no             left out
 7    matched a wrong video with the right span               9  9                0     no             matched, wrong
 8    twice; the last one matched, half of the span           1  1                0.5   yes            matched, right
"""


def turn(answer: str, video: str = "right", ranks: tuple[int, int] = (1, 1), **changes: Any) -> dict[str, Any]:
    after = "right" if ranks[1] == 1 else video
    values = {
        "turn": 1, "rank": ranks[0], "policy_rank": ranks[1], "top1_doc_id": video, "policy_top1_doc_id": after,
        "answer": answer, "pred_start": None, "pred_end": None, "refine_applied": ranks[0] != ranks[1],
    }  # fmt: skip
    return values | changes


def row(number: int, only: dict[str, Any], **changes: Any) -> dict[str, Any]:
    values = {
        "index": number, "qid": f"{number}_fig", "query": "a ring", "gt_pos_doc_id": "right", "gt_start": 10.0,
        "gt_end": 20.0, "gt_duration": 30.0, "orig_rank": only["rank"], "final_rank": only["policy_rank"],
        "max_turn": 2, "stop_reason": "matched", "turns": [only], "text_tokens": number,
    }  # fmt: skip
    return values | changes


def span(start: float, end: float) -> dict[str, float]:
    return {"pred_start": start, "pred_end": end}


def good() -> list[dict[str, Any]]:
    lost = failed_row(
        SearchTask(SampleId("6_fig"), "6_fig", "a ring", "right", (10, 20), 30.0),
        6,
        "ClipError",
        "no frames",
        max_turn=2,
    )
    return [
        row(1, turn("matched", **span(10, 20))),
        row(2, turn("unknown", **span(10, 20))),
        row(3, turn("not_matched", "wrong", (4, 1))),
        row(4, turn("matched", **span(15, 15))),
        row(5, turn("matched", **span(10, 99))),
        json.loads(lost.model_dump_json()),
        row(7, turn("matched", "wrong", (9, 9), **span(10, 20))),
        row(8, turn("matched", **span(10, 15))),
    ]


@pytest.fixture
def trapped(tmp_path: Path) -> Path:
    rows = good()
    lines = [
        json.dumps(row(8, turn("not_matched"))),
        *map(json.dumps, rows),
        json.dumps(row(9, turn("matched", **span(10, 20), iou_r1=float("nan")))),
        json.dumps(row(10, turn("matched", **span(10, 20))))[:-30],
    ]
    path = tmp_path / "predictions.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def run(*arguments: Any) -> tuple[int, str, list[str]]:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    return done.exit_code, done.stdout, done.stderr.splitlines()


def test_values_of_the_traps(trapped: Path) -> None:
    code, out, _ = run("score", trapped, "--json", "--tolerate")
    assert code == 0
    values = json.loads(out)
    problems = values.pop("problems")
    summary = EvalSummary.model_validate(values)
    assert (summary.queries, summary.failed, summary.turns) == (8, {"ClipError": 1}, 2)
    assert (summary.engine.recall_at_1, summary.refined.recall_at_1) == (5 / 8, 6 / 8)
    assert summary.engine.mrr == pytest.approx((5 + 1 / 4 + 1 / 9) / 8)
    assert (summary.refined.mean_rank, summary.refined.ranked) == (15 / 7, 7)
    moments = summary.moments
    assert [moments.iou_03, moments.iou_05, moments.iou_07, moments.mean_iou] == [3 / 8, 3 / 8, 1 / 8, 2 / 8]
    assert (summary.mean_iou_matched_only, summary.matched_with_time) == ((1 + 0 + 0.5 + 1 + 0.5) / 5, 5)
    assert (summary.verification_final.accuracy, summary.verification_final.judged) == (5 / 8, 8)
    final, first = summary.published.final, summary.published.turn1
    assert (final.count, final.accuracy, final.match_precision) == (6, pytest.approx(4 / 6), 4 / 5)
    assert (final.not_match_precision, first.not_match_precision, first.accuracy) == (0.0, 1.0, pytest.approx(5 / 6))
    assert summary.text_tokens_per_query == (1 + 2 + 3 + 4 + 5 + 7 + 8) / 7
    assert (summary.latent_tokens_per_query, summary.corpus_size, summary.refined_by_depth) == (None, None, {})
    assert [problem.split(": ")[:3] for problem in problems] == [
        ["line 9", "qid 8_fig", "qid"],
        ["line 10", "qid 9_fig", "turns.0.iou_r1"],
        ["line 11", "qid 10_fig", "whole line"],
    ]


def test_problems_are_shown_and_fail_the_command(trapped: Path) -> None:
    code, out, problems = run("score", trapped)
    assert code == 1
    assert len(problems) == 3
    assert "8 queries" in out and "failed, counted as misses: 1 ClipError" in out
    assert "last turn: 62.5% of 8, about the video looked at; by the published definition 66.7% of 6" in out
    assert "not recorded" in out  # latent tokens


def test_a_clean_file_scores_without_a_word(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(good()[0]))
    code, out, problems = run("score", path)
    assert (code, problems) == (0, [])
    assert "published definition" not in out


def test_a_recorded_overlap_that_differs_is_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(row(1, turn("matched", **span(10, 15.5), iou_r1=0.61))))
    code, out, problems = run("score", path, "--json")
    assert (code, problems) == (1, ["qid 1_fig: turns.0.iou_r1: recorded 0.61, recomputed 0.55"])
    assert json.loads(out)["moments"]["mIoU@R1"] == 0.55


def test_rows_of_another_dataset_are_not_scored(tmp_path: Path) -> None:
    path, annotations = tmp_path / "p.jsonl", tmp_path / "a.jsonl"
    rows = [row(i, turn("matched", **span(10, 20))) for i in (1, 2, 3, 4)]
    rows[1]["gt_pos_doc_id"] = "another"
    rows[2]["gt_end"] = 21.0
    path.write_text("\n".join(map(json.dumps, rows)))
    known = [
        {"video": "right", "time": [10, 20], "duration": 30.0, "fig_desc": "a ring", "desc_id": i} for i in (1, 2, 3, 5)
    ]
    annotations.write_text("\n".join(map(json.dumps, known)))
    code, out, problems = run("score", path, "--annotations", annotations, "--json")
    assert (code, json.loads(out)["N"]) == (1, 1)
    assert [problem.split("; ")[0] for problem in problems] == [
        "qid 2_fig: gt_pos_doc_id: 'another', annotated is 'right'",
        "qid 3_fig: gt_start: (10.0, 21.0) s, annotated is (10.0, 20.0) s",
        "qid 4_fig: qid: not in the annotations",
        "qid: 3 of 4 annotated have no row: 2_fig, 3_fig, 5_fig",
    ]


def test_export_scores_as_what_it_came_from(trapped: Path, tmp_path: Path) -> None:
    moments = [["right", 10.0, 20.0, 1.0], ["wrong", 0.0, 9.0, 0.5]]
    whole = tmp_path / "whole.jsonl"
    whole.write_text("\n".join(json.dumps({"ranked_moments": moments} | item) for item in good()))
    for form, expected in (("tvr", ("VCMR", "0.7-r1")), ("moment-detr", ("MR-R1", "0.7"))):
        out, truth = tmp_path / form, tmp_path / f"{form}.truth"
        assert run("export", whole, "--format", form, "--out", out, "--ground-truth-out", truth)[0] == 0
        code, shown, _ = run("score", out, "--ground-truth", truth, "--format", form)
        assert code == 0
        assert json.loads(shown)[expected[0]][expected[1]] == 87.5  # all but the failed one
    target = tmp_path / "none"
    code, _, problems = run("export", trapped, "--out", target)
    assert (code, len(problems), target.exists()) == (1, 3, False)


def test_the_published_summary_has_its_own_denominators(tmp_path: Path) -> None:
    path = tmp_path / "good.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in good()), encoding="utf-8")
    code, out, _ = run("score", path, "--published")
    found = json.loads(out)
    assert code == 0
    assert (found["rows_total"], found["rows_valid"], found["skip"]) == (8, 7, {"ClipError": 1})
    assert found["answer_counts"] == {"matched": 5, "unknown": 1, "not_matched": 1}
    assert found["matched_by_turn"] == {"1": 5}
    assert found["refine"]["samples_with_refine"] == 1
    retrieval, temporal = found["retrieval"], found["temporal"]["final"]
    assert (retrieval["orig_query"]["R@1"], retrieval["final"]["R@1"]) == (pytest.approx(5 / 7), pytest.approx(6 / 7))
    assert retrieval["final"]["mean_rank"] == pytest.approx(15 / 7)
    assert retrieval["delta_final_minus_turn1"]["R@1"] == 0
    assert (temporal["count"], temporal["matched_with_time_count"]) == (7, 5)
    assert temporal["mIoU_matched_only"] == pytest.approx(0.6)
    assert temporal["mIoU@R1"] == pytest.approx(2 / 7)
    assert temporal["IoU@0.5@R1"] == pytest.approx(3 / 7)
    assert found["retrieval_policy_by_turn"]["policy@2"] == retrieval["final"]
    assert found["temporal_strict_by_turn"]["turn2"] == {"count": 0}
