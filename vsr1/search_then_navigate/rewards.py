"""The reward terms of both environments: those of the search of its judgements, those of navigation of all its calls.

`location` looks at the right film, and is 0 where that was not navigated; `thrift` is gated by a right moment, as
`answer` gates it in navigation, whose place `verification` and `temporal_iou` have.
"""

from __future__ import annotations

from collections.abc import Mapping

from vsr1.episode.rewards import Term
from vsr1.navigate.rewards import location, repeats
from vsr1.navigate.tree import ClipTree
from vsr1.search.record import moment_iou
from vsr1.search.rewards import SearchRewards
from vsr1.search_then_navigate.record import LongSearchTrajectory, calls_of, is_judgement, judgements, spent, visits
from vsr1.settings.navigate import NavigateRewardConfig
from vsr1.settings.training import RewardConfig

RIGHT_IOU = 0.5  # of the moment that was answered with the true one, from which on it counts as found


class SearchThenNavigateRewards:
    """The six terms of a search with the weights of `rewards`, and three with those of `navigate.rewards`."""

    def __init__(self, search: RewardConfig, navigate: NavigateRewardConfig) -> None:
        self._search = SearchRewards(search)
        self.terms = (
            *self._search.terms,
            Term("location", navigate.location, of_end=True),
            Term("repeat", navigate.repeat, of_end=True),
            Term("thrift", navigate.thrift, of_end=True),
        )

    def of_turns(self, trajectory: LongSearchTrajectory) -> list[Mapping[str, float]]:
        judged = iter(self._search.of_turns(judgements(trajectory)))
        return [next(judged) if is_judgement(turn) else {} for turn in trajectory.turns]

    def of_end(self, trajectory: LongSearchTrajectory) -> Mapping[str, float]:
        return {
            **self._search.of_end(judgements(trajectory)),
            "location": right_location(trajectory),
            "repeat": repeats(turn.record for turn in calls_of(trajectory)),
            "thrift": thrift(trajectory),
        }


def right_location(trajectory: LongSearchTrajectory) -> float:
    """Return how well the frontier in the right film fits the true moment (`vsr1.navigate.rewards.location`)."""
    task = trajectory.task
    nodes = [node for visit in visits(trajectory) if visit.judgement.record.video_id == task.gt_video
             for node in visit.nodes]  # fmt: skip
    return location(ClipTree.of(task.gt_duration), nodes, [task.gt_span]) if nodes else 0.0


def thrift(trajectory: LongSearchTrajectory) -> float:
    """Return the share of the budget that a search left which found the right moment, in 0..1; 0 of a budget of 0."""
    budget = trajectory.task.budget
    is_right = moment_iou(judgements(trajectory)) >= RIGHT_IOU
    return max(0.0, 1 - spent(trajectory) / budget) if budget and is_right else 0.0
