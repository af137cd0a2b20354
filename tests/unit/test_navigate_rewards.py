"""The reward of navigation: its vectors, its bounds, and what the published one would have paid."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from navigation import call, play, task

from vsr1.episode.rewards import scored
from vsr1.navigate.rewards import NavigateRewards, location
from vsr1.navigate.tree import ClipTree
from vsr1.settings.navigate import NavigateConfig, NavigateRewardConfig

TREE = ClipTree.of(2000)
G, S, D = [(32.0, 48.0)], [(40.0, 44.0)], [(36.0, 44.0), (1236.0, 1244.0)]
LEAVES = [TREE.leaf(number) for number in range(125)]
REWARDS = NavigateRewards(NavigateRewardConfig())


def published(nodes, clues):
    """What the published code computes: overlaps added up over calls, against a union of what was visited."""
    spans = [TREE.span(node) for node in nodes]
    inter = sum(max(0.0, min(end, b) - max(start, a)) for start, end in spans for a, b in clues)
    seconds = {leaf for node in nodes for leaf in TREE.leaves(node)}
    seen, clue = len(seconds) * 16.0, sum(b - a for a, b in clues)
    cover, precise = inter / clue, inter / seen
    return 2 * cover * precise / (cover + precise) if inter else 0.0


@pytest.mark.parametrize(
    ("clues", "nodes", "publishes", "ours"),
    [
        (G, [(1, 1, 3)], 1, 1),
        (G, [(1, 1)], 0.333, 0.333),
        (G, [(1, 1), (1, 1, 3)], 0.667, 1),
        (G, [(1, 1), (1, 1, 3), (1, 1, 2), (1, 1, 4)], 0.667, 0.5),
        (G, [(1, 1, 3)] * 15, 15, 1),
        (G, [(5, 5, 5)], 0, 0),
        (S, [(1, 1, 3)], 0.4, 1),
        (S, [(1, 1), (1, 1, 3)], 0.190, 1),
        (D, [(1, 1, 3)], 0.5, 0.667),
        (D, [(1, 1, 3), (4, 1, 3)], 0.667, 1),
        (G, LEAVES, 0.016, 0.016),
    ],
)
def test_the_vectors_of_the_location_term(clues, nodes, publishes, ours):
    assert location(TREE, nodes, clues) == pytest.approx(ours, abs=5e-4)
    assert published(nodes, clues) == pytest.approx(publishes, abs=5e-4)


@given(
    st.lists(st.sampled_from([(1,), (2, 2), *LEAVES]), max_size=12),
    st.lists(st.tuples(st.floats(0, 2000), st.floats(0, 300)).map(lambda pair: (pair[0], sum(pair))), max_size=4),
)
def test_location_is_bounded_and_a_repeat_earns_nothing(nodes, clues):
    value = location(TREE, nodes, clues)
    assert 0 <= value <= 1
    assert location(TREE, nodes * 3, clues) == value


def reward(replies, **values):
    _, trajectory = play(replies, task(**values))
    return scored(trajectory, REWARDS)


DOWN, LEAF = call("caption(1,1)"), call("caption(1,1,3)")
RED, BLUE = "<answer>red</answer>", "<answer>blue</answer>"


@pytest.mark.parametrize(
    ("replies", "terms"),
    [
        ([RED], {"answer": 1, "location": 0, "repeat": 0, "thrift": 1}),
        ([BLUE], {"answer": 0, "location": 0, "repeat": 0, "thrift": 0}),
        (["<answer>unknown</answer>"], {"answer": 0.1, "location": 0, "repeat": 0, "thrift": 0}),
        ([DOWN, LEAF, RED], {"answer": 1, "location": 1, "repeat": 0, "thrift": 0.5}),
        ([DOWN, LEAF, BLUE], {"answer": 0, "location": 1, "repeat": 0, "thrift": 0}),
        ([DOWN, LEAF, LEAF, LEAF, RED], {"answer": 1, "location": 1, "repeat": 0.5, "thrift": 0.5}),
        ([DOWN, "nonsense", RED], {"answer": 1, "location": 1 / 3, "repeat": 0, "thrift": 0.75}),
    ],
)
def test_the_terms_of_an_episode(replies, terms):
    trajectory = reward(replies)
    assert trajectory.terms == pytest.approx(terms)
    weights = {"answer": 1.0, "location": 0.5, "repeat": -0.2, "thrift": 0.3}
    assert trajectory.reward == pytest.approx(sum(weights[name] * value for name, value in terms.items()))
    assert sum(trajectory.turn_rewards) == pytest.approx(trajectory.reward)


def test_a_wrong_answer_is_never_better_for_being_quick_or_for_repeats():
    assert reward([BLUE]).reward == 0
    assert reward([DOWN, LEAF, LEAF, LEAF, BLUE]).reward < reward([DOWN, LEAF, BLUE]).reward < reward([RED]).reward


def test_a_budget_of_zero_has_no_thrift():
    assert reward([RED], budget=0.0).terms["thrift"] == 0


def test_one_malformed_call_does_not_take_the_location_away():
    _, trajectory = play([DOWN, call("caption(1)"), LEAF, RED], settings=NavigateConfig(free_turns=1))
    assert scored(trajectory, REWARDS).terms["location"] == 1
