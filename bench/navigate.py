"""Accuracy against budget in the long toy world: scripted agents beside the computed optimum."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from bench.navigators import AGENTS
from bench.optimum import best_accuracy
from vsr1.episode.sample import SampleId
from vsr1.navigate.record import NavigateTask, is_right, spent, visited
from vsr1.navigate.rewards import location
from vsr1.navigate.tree import Node
from vsr1.settings.navigate import NavigateConfig
from vsr1.toy.long_films import LongFilm, make_long_film
from vsr1.toy.navigators import Agent, play

BUDGETS = (2, 4, 8, 16, 30)
FEW = (1, 3, 5, 6, 7, 10, 12)  # further budgets of the player that searches
SOON = 2  # calls within which a wrong branch is to be left


def navigate_curve(films: int, minutes: Sequence[float], seed: int, budgets: Sequence[int] = BUDGETS) -> dict[str, Any]:
    """Play every agent over the question of each film with each budget.

    Args:
        films: of each length.
        minutes: lengths.

    Returns:
        By length and budget the expected accuracy of the best player without a search, and of each agent its accuracy,
        the calls it made, the location term, and how often it left a wrong first branch within two calls.
    """
    settings, curves = NavigateConfig(), {}
    for length in minutes:
        world = [make_long_film(f"film-{length:g}-{number}", length, seed) for number in range(films)]
        curves[f"{length:g}"] = {str(budget): _at(world, budget, settings) for budget in budgets}
    return {"films": films, "seed": seed, "minutes": curves}


def _at(films: list[LongFilm], budget: int, settings: NavigateConfig) -> dict[str, Any]:
    optimum = fmean(best_accuracy(film.width, len(film.plan.look_alikes), budget) for film in films)
    return {"optimum": optimum} | {name: _figures(films, budget, settings, agent) for name, agent in AGENTS.items()}


def _figures(films: list[LongFilm], budget: int, settings: NavigateConfig, agent: Agent) -> dict[str, Any]:
    trajectories = [play(film, film.task(SampleId(film.film), budget), settings, agent)[0] for film in films]
    left = [verdict for one in trajectories if (verdict := left_soon(one.task, visited(one))) is not None]
    return {
        "accuracy": fmean(map(is_right, trajectories)),
        "calls": fmean(map(spent, trajectories)),
        "location": fmean(location(one.task.tree, visited(one), one.task.clues) for one in trajectories),
        "wrong_first_branches": len(left),
        "left_within_two_calls": fmean(left) if left else None,
    }


def find_worth(films: int, minutes: Sequence[float], seed: int, level: int) -> dict[str, Any]:
    """Return what a search in the action set saves: calls at equal accuracy, of the best player without one and with.

    Args:
        films: of each length.
        minutes: lengths.
        level: of the nodes that a search names.

    Returns:
        By length, for each budget of the player without a search: its accuracy and calls, the fewest mean calls with
        which the one that searches first is as accurate, whatever its budget, None where it never is, and their ratio.
    """
    settings, lengths = NavigateConfig.model_validate({"find_level": level}), {}
    for length in minutes:
        world = [make_long_film(f"film-{length:g}-{number}", length, seed) for number in range(films)]
        without = {budget: _figures(world, budget, settings, AGENTS["optimal"]) for budget in BUDGETS}
        points = [_figures(world, budget, settings, AGENTS["searcher"]) for budget in (*FEW, *BUDGETS)]
        lengths[f"{length:g}"] = {str(budget): _compared(figures, points) for budget, figures in without.items()}
    return {"films": films, "seed": seed, "find_level": level, "minutes": lengths}


def _compared(without: dict[str, Any], points: list[dict[str, Any]]) -> dict[str, Any]:
    calls = [point["calls"] for point in points if point["accuracy"] >= without["accuracy"]]
    least = min(calls, default=None)
    ratio = least / without["calls"] if least is not None and without["calls"] else None
    return {"accuracy": without["accuracy"], "calls": without["calls"], "calls_with_find": least, "ratio": ratio}


def left_soon(task: NavigateTask, nodes: Sequence[Node]) -> bool | None:
    """Tell whether a wrong first branch was left within two calls, None where the first one was right or none was.

    Args:
        nodes: that were looked into, in order.
    """
    tree = task.tree
    right = {tree.leaf(number)[:1] for number in tree.covered(task.clues)}
    if not nodes or nodes[0][:1] in right:
        return None
    return any(node[:1] != nodes[0][:1] for node in nodes[1 : SOON + 1])
