"""What counts as the same, and how a difference is told."""

import pytest

from pipelines.evaluation.replay.differences import (
    Differs,
    Finding,
    NotChecked,
    finding,
    same_numbers,
    same_rank,
    same_ranking,
    same_sequence,
)

SCORES = {"a": 0.9, "b": 0.50001, "c": 0.5, "d": 0.1}
RANKED = [("a", 0.9), ("b", 0.50001), ("c", 0.5)]


def test_a_check_ends_in_one_of_three_ways() -> None:
    def ends(error: Exception | None) -> str:
        if error:
            raise error
        return "2 clips"

    assert finding("clip", ends, None) == Finding("clip", "ok", "2 clips")
    assert finding("clip", ends, Differs("by 1")) == Finding("clip", "differs", "by 1")
    assert finding("clip", ends, NotChecked("gone")) == Finding("clip", "not checked", "gone")
    with pytest.raises(ZeroDivisionError):
        finding("clip", lambda: str(1 / 0))


@pytest.mark.parametrize(
    ("recorded", "found", "says"),
    [
        ([1, 2, 3], [1, 5, 4], r"tokens, place 1: recorded 2, recomputed 5 \(lengths 3 and 3\)"),
        ([1, 2, 3], [1, 2], r"tokens, place 2: recorded 3, recomputed nothing \(lengths 3 and 2\)"),
        ([], [7], r"tokens, place 0: recorded nothing, recomputed 7 \(lengths 0 and 1\)"),
    ],
)
def test_the_first_place_that_differs_is_named(recorded: list[int], found: list[int], says: str) -> None:
    same_sequence("tokens", recorded, recorded)
    with pytest.raises(Differs, match=says):
        same_sequence("tokens", recorded, found)


def test_numbers_are_held_to_the_tolerance() -> None:
    assert same_numbers("n", [1.0, 2.0], [1.0, 2.25], 0.25).tolist() == [0.0, 0.25]
    assert len(same_numbers("n", [], [], 0.0)) == 0
    with pytest.raises(Differs, match=r"n: differs by 0.5 at most, 0.25 in the mean; first at place 1: recorded 2, "):
        same_numbers("n", [1.0, 2.0], [1.0, 2.5], 0.25)
    with pytest.raises(Differs, match="how many: recorded 1, recomputed 2"):
        same_numbers("n", [1.0], [1.0, 2.0], 1.0)
    with pytest.raises(Differs, match="differs by nan"):
        same_numbers("n", [float("nan")], [0.0], 1.0)


def test_videos_of_about_one_score_may_change_places() -> None:
    swapped = [RANKED[0], RANKED[2], RANKED[1]]
    same_ranking("r", swapped, RANKED, SCORES, 1e-4)
    with pytest.raises(Differs, match="best scores"):
        same_ranking("r", swapped, RANKED, SCORES, 1e-6)


@pytest.mark.parametrize(
    ("recorded", "says"),
    [
        ([("a", 0.9), ("b", 0.6), ("c", 0.5)], "scores of the videos: differs by 0.1"),
        ([("a", 0.9), ("b", 0.50001), ("d", 0.1)], "best scores: differs by 0.4"),
        ([("a", 0.9), ("b", 0.50001)], "how many: recorded 2, recomputed 3"),
        ([("a", 0.9), ("z", 0.50001)], "'z' is not in the corpus of 4 videos"),
    ],
)
def test_a_ranking_needs_the_right_videos_with_the_right_scores(recorded: list[tuple[str, float]], says: str) -> None:
    with pytest.raises(Differs, match=says):
        same_ranking("r", recorded, RANKED, SCORES, 1e-4)


def test_a_rank_may_be_any_of_those_that_tie() -> None:
    for rank in (2, 3):
        same_rank("r", rank, SCORES, "c", 1e-4)
    with pytest.raises(Differs, match="recorded 1, recomputed 2 to 3"):
        same_rank("r", 1, SCORES, "b", 1e-4)
    with pytest.raises(Differs, match="recorded 2, recomputed 3"):
        same_rank("r", 2, SCORES, "c", 1e-6)
