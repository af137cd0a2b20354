"""What an episode of both leaves: calls and judgements in one row of turns.

The calls into a film stand before the judgement of it, and every film that was shown has one, unless the episode was
lost. What only one of the two environments knows reads its own turns: `judgements`, `calls_of`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeGuard

from vsr1.episode.trajectory import Trajectory, Turn
from vsr1.navigate.record import NavigateTurn
from vsr1.navigate.tree import Node
from vsr1.search.record import SearchTask, SearchTrajectory, SearchTurn


@dataclass
class LongSearchTask(SearchTask):
    """One sample of one query, with a budget of calls for all the films that it navigates."""

    budget: float = 0.0


LongSearchTrajectory = Trajectory[LongSearchTask, SearchTurn | NavigateTurn]


@dataclass(frozen=True)
class FilmVisit:
    """A film that was shown: the calls into it, none where one look was enough, and its judgement."""

    judgement: Turn[SearchTurn]
    calls: list[Turn[NavigateTurn]]

    @property
    def nodes(self) -> list[Node]:
        """Return the nodes that were looked into, in order."""
        records = (turn.record for turn in self.calls)
        return [record.node for record in records if record.status == "ok" and record.node is not None]


def is_judgement(turn: Turn[SearchTurn | NavigateTurn]) -> TypeGuard[Turn[SearchTurn]]:
    """Tell whether a turn judges its video; the others call a tool."""
    return isinstance(turn.record, SearchTurn)


def is_call(turn: Turn[SearchTurn | NavigateTurn]) -> TypeGuard[Turn[NavigateTurn]]:
    """Tell whether a turn calls a tool, or tries to."""
    return isinstance(turn.record, NavigateTurn)


def judgements(trajectory: LongSearchTrajectory) -> SearchTrajectory:
    """Return the episode as the search that it is, without the turns that call tools; its turns count from 1."""
    judged = (turn for turn in trajectory.turns if is_judgement(turn))
    turns = [replace(turn, number=number) for number, turn in enumerate(judged, start=1)]
    search: Any = trajectory
    return replace(search, turns=turns)


def calls_of(trajectory: LongSearchTrajectory) -> list[Turn[NavigateTurn]]:
    """Return the turns that call tools, of all films."""
    return [turn for turn in trajectory.turns if is_call(turn)]


def visits(trajectory: LongSearchTrajectory) -> list[FilmVisit]:
    """Return the films that were judged, in order."""
    result, calls = list[FilmVisit](), list[Turn[NavigateTurn]]()
    for turn in trajectory.turns:
        if is_judgement(turn):
            result.append(FilmVisit(turn, calls))
            calls = []
        elif is_call(turn):
            calls.append(turn)
    return result


def spent(trajectory: LongSearchTrajectory) -> float:
    """Return what the calls of all films cost, in units of the budget."""
    return sum(turn.record.cost for turn in calls_of(trajectory))
