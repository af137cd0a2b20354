"""The summary of an evaluation on four trajectories small enough to count by hand."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from search_episodes import search_trajectory, search_turn

from vsr1.episode.moments import Span
from vsr1.episode.sample import SampleId
from vsr1.episode.trajectory import Turn
from vsr1.metrics.prediction_rows import failed_row, prediction_row
from vsr1.metrics.predictions import PredictionRow
from vsr1.metrics.summary import EvalSummary, VerdictCounts, refined_rank, summarise
from vsr1.search.record import SearchTask, SearchTrajectory, SearchTurn, Verdict, moment_iou

CORPUS = 200


def look(
    video: str, verdict: Verdict, before: int, after: int | None = None, span: Span | None = None, tokens: int = 10
) -> Turn[SearchTurn]:
    latents = None if after is None else np.zeros((8, 4), np.float32)
    return search_turn(1, video, verdict, span, tokens=tokens, latents=latents, ranks=(before, after))


def path(*turns: Turn[SearchTurn], end: str = "matched", gt_span: Span = (10.0, 20.0)) -> SearchTrajectory:
    numbered = [replace(turn, number=number) for number, turn in enumerate(turns, start=1)]
    return search_trajectory("q", numbered, end, gt=("right", gt_span, 30.0))


def rows(trajectories: list[SearchTrajectory], corpus_size: int = CORPUS) -> list[PredictionRow]:
    return [prediction_row(item, i, max_turn=3, corpus_size=corpus_size) for i, item in enumerate(trajectories)]


@pytest.fixture
def four() -> list[SearchTrajectory]:
    return [
        # Found after one refinement; the span runs past the end of the video: [10, 30] against [10, 20], IoU 0.5.
        path(look("wrong", "not_matched", 7, 1), look("right", "matched", 1, span=(10.0, 99.0), tokens=20)),
        path(look("right", "matched", 1, span=(20.0, 10.0))),  # reversed: put in order, IoU 1
        path(look("wrong", "matched", 150, span=(10.0, 20.0))),  # the right span of the wrong video
        # The last refinement brings the right video to rank 4, after the last look.
        path(look("wrong", "unknown", 60, 12), look("wrong", "not_matched", 12, 4), end="max_turns"),
    ]


def test_counts_by_hand(four: list[SearchTrajectory]) -> None:
    summary = summarise(rows(four))
    assert (summary.queries, summary.corpus_size) == (4, CORPUS)
    engine, refined = summary.engine, summary.refined
    assert [engine.recall_at_1, engine.recall_at_5, engine.recall_at_10, engine.recall_at_100] == [
        0.25,
        0.25,
        0.5,
        0.75,
    ]
    assert [refined.recall_at_1, refined.recall_at_5, refined.recall_at_10] == [0.5, 0.75, 0.75]
    assert engine.mrr == pytest.approx((1 / 7 + 1 + 1 / 150 + 1 / 60) / 4)
    assert (engine.mean_rank, engine.median_rank, refined.median_rank) == (54.5, 33.5, 2.5)
    assert [moment_iou(item) for item in four] == [0.5, 1.0, 0.0, 0.0]
    moments = summary.moments
    assert [moments.iou_03, moments.iou_05, moments.iou_07, moments.mean_iou] == [0.5, 0.5, 0.25, 0.375]
    assert (summary.latent_tokens_per_query, summary.text_tokens_per_query, summary.turns_per_query) == (6.0, 17.5, 1.5)
    assert summary.end_reasons == {"matched": 3, "max_turns": 1}


def test_verification_judges_the_video_looked_at_and_counts_unknown_as_wrong(four: list[SearchTrajectory]) -> None:
    summary = summarise(rows(four))
    final, every = summary.verification_final, summary.verification_all_turns
    assert (final.accuracy, final.judged) == (0.75, 4)
    assert (every.accuracy, every.judged) == (pytest.approx(4 / 6), 6)
    assert every.right_video == VerdictCounts(matched=2)
    assert every.wrong_video == VerdictCounts(matched=1, not_matched=2, unknown=1)
    by_turn = summary.verification_by_turn
    assert {turn: (scores.accuracy, scores.judged) for turn, scores in by_turn.items()} == {
        "1": (0.5, 4),
        "2": (1.0, 2),
    }


def test_true_moment_is_not_clamped() -> None:
    late = path(look("right", "matched", 1, span=(20.0, 50.0)), gt_span=(20.0, 40.0))
    assert moment_iou(late) == 0.5  # predicted [20, 30] against [20, 40]


def test_missing_span_scores_0() -> None:
    assert moment_iou(path(look("right", "matched", 1))) == 0.0
    assert moment_iou(path(look("right", "not_matched", 1, 1, span=(10.0, 20.0)))) == 0.0


def test_json_uses_the_reference_names_and_comes_back(four: list[SearchTrajectory]) -> None:
    summary = summarise(rows(four))
    row = json.loads(json.dumps(summary.to_json()))
    assert row["N"] == 4
    assert row["refined"]["R@1"] == 0.5
    assert row["moments"]["IoU@0.5@R1"] == 0.5
    assert row["moments"]["mIoU@R1"] == 0.375
    assert EvalSummary.model_validate(row) == summary
    with pytest.raises(ValidationError, match="corpus_size"):
        EvalSummary.model_validate({key: value for key, value in row.items() if key != "corpus_size"})


def test_nothing_to_summarise_is_an_error() -> None:
    with pytest.raises(ValueError, match="no rows"):
        summarise([])


def test_rank_outside_the_corpus_is_an_error(four: list[SearchTrajectory]) -> None:
    with pytest.raises(ValueError, match=r"turn 1: rank 150 is outside 1\.\.100"):
        rows(four, 100)


RANK = st.integers(1, CORPUS)
LOOKS = st.builds(
    look,
    st.sampled_from(["right", "wrong"]),
    st.sampled_from(["matched", "not_matched", "unknown"]),
    RANK,
    st.none() | RANK,
    st.none() | st.tuples(st.floats(-5, 50), st.floats(-5, 50)),
)
PATHS = st.lists(LOOKS, min_size=1, max_size=3).map(lambda turns: path(*turns))


@given(st.lists(PATHS, min_size=1, max_size=8))
def test_bounds_hold_for_any_trajectories(trajectories: list[SearchTrajectory]) -> None:
    summary = summarise(rows(trajectories))
    for scores in (summary.engine, summary.refined):
        assert 0 <= scores.recall_at_1 <= scores.recall_at_5 <= scores.recall_at_10 <= scores.recall_at_100 <= 1
    moments = summary.moments
    assert 0 <= moments.iou_07 <= moments.iou_05 <= moments.iou_03 <= 1
    assert moments.iou_03 <= summary.verification_final.accuracy
    assert summary.verification_all_turns.judged == sum(len(item.turns) for item in trajectories)
    assert sum(summary.end_reasons.values()) == len(trajectories)
    assert summary.refined.mean_rank == pytest.approx(sum(map(refined_rank, trajectories)) / len(trajectories))


def test_turns_carry_forward_and_strict_turns_do_not(four: list[SearchTrajectory]) -> None:
    summary = summarise(rows(four))
    assert summary.turns == 3
    assert [summary.refined_by_turn[turn].recall_at_1 for turn in "123"] == [0.5, 0.5, 0.5]
    assert [summary.refined_by_turn[turn].mean_rank for turn in "123"] == [(1 + 1 + 150 + 12) / 4, 39.0, 39.0]
    assert [summary.moments_by_turn[turn].mean_iou for turn in "123"] == [0.25, 0.375, 0.375]
    assert set(summary.strict_by_turn) == {"1", "2"}
    second = summary.strict_by_turn["2"]
    assert (second.count, second.retrieval.recall_at_1, second.moments.mean_iou) == (2, 0.5, 0.25)
    # Matched with a span: 0.5, 1, and 1 on the wrong video.
    assert (summary.mean_iou_matched_only, summary.matched_with_time) == (pytest.approx(2.5 / 3), 3)
    assert summary.seconds_per_query == pytest.approx(0.15)


def test_a_failed_query_is_a_miss_everywhere_but_in_mean_ranks_and_costs(four: list[SearchTrajectory]) -> None:
    lost = failed_row(
        SearchTask(SampleId("lost"), "lost", "a query"),
        4,
        "video_file_missing",
        "no clip of v",
        max_turn=3,
        corpus_size=CORPUS,
    )
    summary = summarise([*rows(four), lost])
    assert (summary.queries, summary.failed) == (5, {"video_file_missing": 1})
    assert summary.refined.recall_at_1 == 2 / 5
    assert summary.refined.recall_at_100 == 3 / 5
    assert summary.engine.mrr == pytest.approx((1 / 7 + 1 + 1 / 150 + 1 / 60) / 5)
    assert (summary.engine.mean_rank, summary.engine.median_rank, summary.engine.ranked) == (54.5, 33.5, 4)
    assert summary.moments.mean_iou == pytest.approx(1.5 / 5)
    assert [summary.moments_by_turn[turn].mean_iou for turn in "13"] == pytest.approx([1 / 5, 1.5 / 5])
    assert (summary.verification_final.accuracy, summary.verification_final.failed) == (3 / 5, 1)
    assert (summary.verification_all_turns.accuracy, summary.verification_all_turns.judged) == (4 / 7, 7)
    assert [summary.verification_by_turn[turn].judged for turn in "12"] == [5, 2]
    assert summary.text_tokens_per_query == 17.5
    assert summary.end_reasons == {"matched": 3, "max_turns": 1}
    nothing = summarise([lost])
    assert (nothing.refined.recall_at_1, nothing.refined.mean_rank, nothing.text_tokens_per_query) == (0.0, None, None)
    assert (nothing.verification_final.accuracy, nothing.published.final.accuracy) == (0.0, None)


def test_ranks_by_number_of_latents(four: list[SearchTrajectory]) -> None:
    four[0].turns[0].record.ranks_by_depth = [6, 1]
    four[3].turns[0].record.ranks_by_depth = [60, 12]
    summary = summarise(rows(four))
    assert {depth: scores.mean_rank for depth, scores in summary.refined_by_depth.items()} == {
        "1": (6 + 1 + 150 + 60) / 4,
        "2": (1 + 1 + 150 + 12) / 4,
    }
    assert summary.refined_by_depth["2"] == summary.refined_by_turn["1"]
    four[3].turns[0].record.ranks_by_depth = None
    with pytest.raises(ValueError, match=r"qid q: turns.0.profile_policy_rank_by_depth: missing"):
        summarise(rows(four))


def test_published_verification_counts_no_unknown_and_judges_the_ranking_that_nobody_looked_at() -> None:
    looked_right = path(look("right", "matched", 1))
    # Right to say no; then the refinement brings the right video to the top, and the published flag changes sides.
    replaced = path(look("wrong", "not_matched", 3, 1), end="max_turns")
    replaced.last.record.retrieved_after = [("right", 0.9)]
    unread = path(look("wrong", "unknown", 2), end="no_refinement")
    summary = summarise(rows([looked_right, replaced, unread]))
    assert (summary.verification_final.accuracy, summary.verification_final.judged) == (2 / 3, 3)
    turn1, final = summary.published.turn1, summary.published.final
    assert (turn1.count, turn1.accuracy, turn1.match_precision, turn1.not_match_precision) == (2, 1.0, 1.0, 1.0)
    assert (final.count, final.accuracy, final.match_precision, final.not_match_precision) == (2, 0.5, 1.0, 0.0)


def test_rows_of_different_runs_are_a_problem(four: list[SearchTrajectory]) -> None:
    made = [prediction_row(four[1], 0, max_turn=1, corpus_size=5, fingerprint=name) for name in ("a", "b")]
    with pytest.raises(ValueError, match=r"fingerprint: rows of different runs are mixed: a, b"):
        summarise(made)
    assert summarise(made[:1]).fingerprint == "a"
