"""The computed optimum against hand-made numbers, and against every policy there is in a very small world."""

from functools import cache
from itertools import pairwise, product

import pytest

from bench.optimum import best_accuracy, best_move, in_right_scene
from vsr1.toy.long_films import DROPPED


def test_without_a_budget_there_is_a_guess():
    assert best_accuracy(4, 2, 0) == pytest.approx(1 / 6)


def test_a_single_scene_is_a_search_for_one_leaf():
    assert in_right_scene(4, 1, 0, False) == 0
    assert in_right_scene(4, 2, 0, False) == pytest.approx(1 / 16)
    assert in_right_scene(4, 8, 0, False) == 1
    assert in_right_scene(4, 3, 1, True, 1) == 1


@pytest.mark.parametrize(("width", "look_alikes"), [(4, 2), (5, 3), (8, 3)])
def test_more_budget_is_never_worse_and_enough_of_it_is_all(width, look_alikes):
    values = [best_accuracy(width, look_alikes, budget) for budget in range(31)]
    assert all(a <= b + 1e-12 for a, b in pairwise(values))
    assert values[30] == pytest.approx(1, abs=2e-3)
    assert best_accuracy(width, look_alikes, 60) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("budget", [1, 2, 3])
def test_no_policy_of_a_small_world_does_better(budget):
    """Expectimax over all worlds of width 2 with two look-alikes, told nothing but what captions say."""
    leaves = list(product((1, 2), repeat=2))
    worlds = []  # right scene, place of the detail in each scene, and which parts drop what the scene does
    for right, first, second, drops in product((0, 1), leaves, leaves, product((False, True), repeat=4)):
        chance = 1.0
        for dropped in drops:
            chance *= DROPPED if dropped else 1 - DROPPED
        worlds.append(((right, (first, second), drops), chance / 32))

    def outcome(world, node):
        right, places, drops = world
        scene, *rest = node
        if len(rest) == 1:
            verdict = None if drops[2 * scene + rest[0] - 1] else scene == right
            return verdict, places[scene][0] == rest[0]
        return scene == right, places[scene] == tuple(rest)

    nodes = [(scene, part) for scene in (0, 1) for part in (1, 2)]
    nodes += [(*node, leaf) for node in nodes for leaf in (1, 2)]

    @cache
    def best(left, known, opened):
        """Return the probability mass in which the detail is seen from here."""
        if not left:
            return 0.0
        most = 0.0
        for node in nodes:
            if node in opened or (len(node) == 3 and node[:2] not in opened):
                continue
            parts = {}
            for index in known:
                parts.setdefault(outcome(worlds[index][0], node), []).append(index)
            mass = 0.0
            for seen, indices in parts.items():
                if len(node) == 3 and seen == (True, True):
                    mass += sum(worlds[index][1] for index in indices)
                else:
                    mass += best(left - 1, tuple(indices), opened | {node})
            most = max(most, mass)
        return most

    everything = best(budget, tuple(range(len(worlds))), frozenset())
    assert best_move(2, budget, ((0, False), (0, False)))[0] == pytest.approx(everything)
