"""The clip tree: its width, the spans of its nodes, and which leaves a span touches."""

from itertools import pairwise

import pytest

from vsr1.navigate.tree import ClipTree, tree_width


@pytest.mark.parametrize(
    ("minutes", "width"),
    [(0.1, 4), (10, 4), (17, 4), (24.2, 4), (24.4, 5), (33, 5), (67, 6), (120, 8), (600, 8)],
)
def test_the_width_follows_the_published_rule(minutes, width):
    assert tree_width(minutes * 60) == width


def test_a_length_in_whole_seconds_is_a_number_of_seconds_as_any_other():
    borders = ClipTree.of(2003, [500]).borders
    assert {type(border) for border in borders} == {float} and borders == ClipTree.of(2003.0, [500.0]).borders


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf"), float("nan")])
def test_a_film_without_a_length_has_no_tree(seconds):
    with pytest.raises(ValueError, match="must be positive and finite"):
        ClipTree.of(seconds)


def test_nodes_have_the_published_spans():
    tree = ClipTree.of(2000)
    assert tree.width == 5
    assert tree.span((1,)) == (0, 400)
    assert tree.span((2, 3)) == pytest.approx((400 + 160, 400 + 240))
    assert tree.span((1, 1, 3)) == pytest.approx((32, 48))
    assert tree.span((5, 5, 5)) == pytest.approx((1984, 2000))
    assert tree.span(()) == (0, 2000)


def test_the_parts_of_a_node_tile_it():
    tree = ClipTree.of(4000)
    for node in [(), (2,), (6, 6)]:
        spans = [tree.span(part) for part in tree.children(node)]
        assert (spans[0][0], spans[-1][1]) == tree.span(node)
        assert all(a[1] == b[0] for a, b in pairwise(spans))
    assert tree.children((1, 1, 1)) == []


def test_a_leaf_has_the_number_that_its_node_says():
    tree = ClipTree.of(700)
    leaves = [tree.leaf(number) for number in range(64)]
    assert [list(tree.leaves(leaf)) for leaf in leaves] == [[number] for number in range(64)]
    assert leaves[0] == (1, 1, 1) and leaves[63] == (4, 4, 4)


@pytest.mark.parametrize("node", [(0, 1), (5, 1), (1, 1, 1, 1), ()])
def test_what_is_no_node_is_not_in_the_tree(node):
    assert node not in ClipTree.of(700)


def test_spans_are_snapped_outward_to_leaves():
    tree = ClipTree.of(2000)
    assert tree.covered([(32, 48)]) == {2}
    assert tree.covered([(40, 44)]) == {2}
    assert tree.covered([(31, 49)]) == {1, 2, 3}
    assert tree.covered([(1236, 1244)]) == {77}
    assert tree.covered([(40, 40)]) == {2}
    assert tree.covered([(1990, 2500)]) == {124}
    assert tree.covered([]) == set()


def test_borders_move_to_scenes_that_are_near_and_to_no_others():
    tree = ClipTree.of(640, [3.0, 9.0, 21.0, 35.2])
    assert tree.borders[:5] == (0, 9.0, 21.0, 30, 40)
    assert list(tree.borders) == sorted(set(tree.borders))
    assert len(ClipTree.of(640, [index * 0.7 for index in range(900)]).borders) == 65


def test_a_film_shorter_than_a_leaf_is_one_node():
    tree = ClipTree.of(12)
    assert (tree.has_parts, tree.roots, tree.span(())) == (False, [()], (0, 12))
    assert () in tree and (1, 1) not in tree
    assert tree.covered([(1, 3)]) == {0}
