"""The curve of accuracy against budget, and what counts as leaving a wrong branch."""

import pytest
from navigation import call, play

from bench.navigate import left_soon, navigate_curve


def test_a_curve_has_every_agent_at_every_budget_beside_the_optimum():
    figures = navigate_curve(4, [12.0], 0, [0, 8])
    assert (figures["films"], list(figures["minutes"]["12"])) == (4, ["0", "8"])
    at = figures["minutes"]["12"]["8"]
    assert set(at) == {"optimum", "optimal", "greedy", "uniform", "finder", "oracle"}
    assert 0.5 < at["optimum"] < 1 and at["oracle"]["accuracy"] == 1 and at["oracle"]["calls"] <= 8
    assert figures["minutes"]["12"]["0"]["optimal"]["calls"] == 0


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
    assert left_soon(trajectory) is verdict
