"""The best expected accuracy in the long toy world for a budget of calls, by dynamic programming.

For a player who sees captions only, opens a leaf after the part around it (`navigate.parent_first`) and has no search.
The right scene is uniform among the look-alikes, the detail uniform among the leaves of a scene. What is known of a
look-alike is (parts opened, whether one of them shows the detail); where nothing has told yet what its shape does, it
is open. A part tells that but for a share of `DROPPED`, a leaf always.

    open scenes    a sorted tuple of (opened, detail); with one left it is the right one
    right scene    (opened, detail, leaves tried of the part with the detail)
"""

from __future__ import annotations

from functools import cache
from typing import Literal

from vsr1.toy.long_films import DROPPED
from vsr1.toy.world import COLOURS

Scene = tuple[int, bool]
Move = tuple[Literal["part", "leaf", "stop"], Scene]


def best_accuracy(width: int, look_alikes: int, budget: int) -> float:
    """Return the chance of the right answer, a guess among the colours where the detail was not seen.

    Args:
        width: K of the tree.
        look_alikes: scenes of the right shape, the right one included.
    """
    seen, _ = best_move(width, budget, ((0, False),) * look_alikes)
    return seen + (1 - seen) / len(COLOURS)


@cache
def best_move(width: int, budget: int, scenes: tuple[Scene, ...]) -> tuple[float, Move]:
    """Return the chance to see the detail from here, and the first move: of which kind, in a scene of which kind."""
    if len(scenes) == 1:
        opened, detail = scenes[0]
        return in_right_scene(width, budget, opened, detail), ("leaf" if detail else "part", scenes[0])
    best: tuple[float, Move] = 0.0, ("stop", scenes[0])
    if budget == 0:
        return best
    for scene in sorted(set(scenes)):
        rest = list(scenes)
        rest.remove(scene)
        for move in (_after_part(width, budget, scene, rest), _after_leaf(width, budget, scene, rest)):
            if move is not None and move[0] > best[0]:
                best = move
    return best


@cache
def in_right_scene(width: int, budget: int, opened: int, detail: bool, tried: int = 0) -> float:
    """Return the chance to see the detail once the scene is known."""
    if detail:
        return min(budget, width - tried) / (width - tried)
    if budget == 0:
        return 0.0
    chance = 1 / (width - opened)
    value = chance * in_right_scene(width, budget - 1, opened + 1, True)
    if opened + 1 < width:
        value += (1 - chance) * in_right_scene(width, budget - 1, opened + 1, False)
    return value


def _after_part(width: int, budget: int, scene: Scene, rest: list[Scene]) -> tuple[float, Move] | None:
    opened, detail = scene
    if opened == width:
        return None
    chance = 1.0 if detail else 1 / (width - opened)  # of knowing the part with the detail then, or still
    is_right, value = 1 / (len(rest) + 1), 0.0
    for has_detail, share in ((True, chance), (False, 1 - chance)):
        if share == 0:
            continue
        right = in_right_scene(width, budget - 1, opened + 1, has_detail)
        wrong, _ = best_move(width, budget - 1, tuple(rest))
        silent, _ = best_move(width, budget - 1, tuple(sorted([*rest, (opened + 1, has_detail)])))
        value += share * ((1 - DROPPED) * (is_right * right + (1 - is_right) * wrong) + DROPPED * silent)
    return value, ("part", scene)


def _after_leaf(width: int, budget: int, scene: Scene, rest: list[Scene]) -> tuple[float, Move] | None:
    opened, detail = scene
    if not opened:
        return None
    if detail:
        right = 1 / width + (1 - 1 / width) * in_right_scene(width, budget - 1, opened, True, 1)
    else:
        right = in_right_scene(width, budget - 1, opened, False)
    wrong, _ = best_move(width, budget - 1, tuple(rest))
    is_right = 1 / (len(rest) + 1)
    return is_right * right + (1 - is_right) * wrong, ("leaf", scene)
