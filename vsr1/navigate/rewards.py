"""The reward terms of navigation, all of the end of an episode and all within 0 and 1 (longvideo.md §8).

R = 1.0 answer + 0.5 location - 0.2 repeat + 0.3 answer's thrift      with the weights of `navigate.rewards`
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from vsr1.episode.moments import Span
from vsr1.episode.rewards import Term
from vsr1.navigate.record import NavigateTrajectory, NavigateTurn, is_right, spent, visited
from vsr1.navigate.tree import ClipTree, Node
from vsr1.settings.navigate import NavigateRewardConfig


class NavigateRewards:
    """The four terms with the weights of `navigate.rewards`."""

    def __init__(self, config: NavigateRewardConfig) -> None:
        self._abstention = config.abstention
        self.terms = (
            Term("answer", config.answer, of_end=True),
            Term("location", config.location, of_end=True),
            Term("repeat", config.repeat, of_end=True),
            Term("thrift", config.thrift, of_end=True),
        )

    def of_turns(self, trajectory: NavigateTrajectory) -> list[Mapping[str, float]]:
        return [{} for _ in trajectory.turns]

    def of_end(self, trajectory: NavigateTrajectory) -> Mapping[str, float]:
        task, abstained = trajectory.task, trajectory.end_reason == "abstained"
        return {
            "answer": self._abstention if abstained else float(is_right(trajectory)),
            "location": location(task.tree, visited(trajectory), task.clues),
            "repeat": repeats(turn.record for turn in trajectory.turns),
            "thrift": thrift(trajectory),
        }


def location(tree: ClipTree, nodes: Iterable[Node], clues: Iterable[Span]) -> float:
    """Return F1 of the frontier's span and that of the clues, in seconds, in 0..1; 0 without nodes or clues.

    The frontier is the nodes that were looked into, without those of which a part was; clues are snapped outward to
    whole leaves. So the way down the tree costs nothing, a short clue can be met in full, and a repeat earns nothing.
    """
    frontier, right = tree.frontier(nodes), tree.covered(clues)
    both = _seconds(tree, frontier & right)
    return 2 * both / (_seconds(tree, frontier) + _seconds(tree, right)) if both else 0.0


def repeats(turns: Iterable[NavigateTurn]) -> float:
    """Return the share of the calls that were made before, in 0..1."""
    statuses = [turn.status for turn in turns]
    calls = statuses.count("ok") + statuses.count("repeat")
    return statuses.count("repeat") / calls if calls else 0.0


def thrift(trajectory: NavigateTrajectory) -> float:
    """Return the share of the budget that a right answer left, in 0..1; 0 of a wrong one and of a budget of 0."""
    budget = trajectory.task.budget
    return max(0.0, 1 - spent(trajectory) / budget) if budget and is_right(trajectory) else 0.0


def _seconds(tree: ClipTree, leaves: set[int]) -> float:
    return sum(tree.borders[leaf + 1] - tree.borders[leaf] for leaf in leaves)
