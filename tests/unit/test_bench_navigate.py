"""The curve of accuracy against budget, and what counts as leaving a wrong branch."""

import pytest
from navigation import call, play

from bench.long_search import long_search
from bench.navigate import find_worth, left_soon, navigate_curve
from vsr1.navigate.record import visited


def test_a_curve_has_every_agent_at_every_budget_beside_the_optimum():
    figures = navigate_curve(4, [12.0], 0, [0, 8])
    assert (figures["films"], list(figures["minutes"]["12"])) == (4, ["0", "8"])
    at = figures["minutes"]["12"]["8"]
    assert set(at) == {"optimum", "optimal", "greedy", "uniform", "finder", "searcher", "reader", "oracle"}
    assert 0.5 < at["optimum"] < 1 and at["oracle"]["accuracy"] == 1 and at["oracle"]["calls"] <= 8
    assert figures["minutes"]["12"]["0"]["optimal"]["calls"] == 0


def test_a_search_over_leaves_halves_the_calls_of_the_best_player_at_equal_accuracy():
    at = find_worth(12, [33.0], 0, level=3)["minutes"]["33"]["30"]
    assert at["accuracy"] == 1 and at["ratio"] <= 0.5


def test_films_too_long_for_one_look_are_found_by_navigating_them():
    figures = long_search(2, 8, [33.0], 0, budget=16, turns=3)["minutes"]["33"]
    one, both = figures["one_look"], figures["search_then_navigate"]
    assert both["frames"] <= one["frames"] < 1.1 * both["frames"]
    assert both["right_film"] == one["right_film"] == figures["ranked_within_turns"]
    assert figures["ratio"] >= 1.5


@pytest.mark.parametrize(
    ("nodes", "verdict"),
    [
        (["1,1", "2,1"], None),
        (["2,1", "3,1"], True),
        (["2,1", "2,2", "1,1"], True),
        (["2,1", "2,2", "2,3", "1,1"], False),
        (["2,1"], False),
        ([], None),
    ],
)
def test_a_wrong_first_branch_is_left_soon_or_not(nodes, verdict):
    _, trajectory = play([*[call(f"caption({node})") for node in nodes], "<answer>red</answer>"])
    assert left_soon(trajectory.task, visited(trajectory)) is verdict
