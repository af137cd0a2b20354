"""Episodes of navigation on the page: the tree of the film and the calls into it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from vsr1.episode.trajectory import Turn
from vsr1.navigate.calls import ToolCall, node_clip
from vsr1.navigate.prompts import name_of
from vsr1.navigate.record import NavigateTrajectory, NavigateTurn, is_right
from vsr1.navigate.tree import ClipTree, Node


class ReportFilms(Protocol):
    """The films that a page shows, as their dataset has them."""

    def said(self, call: ToolCall) -> str | None:
        """Return what a tool has said of a node, None where nobody has kept it."""

    def tree(self, film: str) -> ClipTree:
        """Return the clip tree of a film."""


def navigation_row(trajectory: NavigateTrajectory, films: ReportFilms | None) -> dict[str, Any]:
    """Return what the page keeps of an episode beside what every environment has."""
    task, last = trajectory.task, trajectory.last.record
    outcomes = {"answered": "wrong answer", "abstained": "abstained"}
    return {
        "kind": "navigate",
        "query_id": f"{task.question_id}@{task.budget:g}",
        "query": task.question,
        "options": task.options,
        "answer": task.answer,
        "answered": last.words if last.status == "answered" else "",
        "budget": task.budget,
        "clues": [list(clue) for clue in task.clues],
        "outcome": "right answer" if is_right(trajectory) else outcomes.get(last.status, "no answer"),
        "turns": call_rows(task.film, trajectory.turns, trajectory.turns, films),
        **film_row(task.film, task.tree, trajectory.turns, films),
    }


def film_row(
    film: str, tree: ClipTree, calls: Sequence[Turn[NavigateTurn]], films: ReportFilms | None
) -> dict[str, Any]:
    """Return what the page draws of a film: the parts around what was looked into or named, and the captions read."""
    records = [turn.record for turn in calls]
    looked = [(one.tool, one.node) for one in records if one.status == "ok" and one.node is not None]
    named = [node for one in records for node in one.nodes]
    opened = {node[:length] for node in [*(node for _, node in looked), *named] for length in range(1, len(node))}
    cells = [*tree.roots, *(part for node in sorted(opened) for part in tree.children(node))]
    captioned: list[Node] = [*tree.roots, *(node for tool, node in looked if tool == "caption")]
    captions = {
        name_of(node) or "all": films.said(ToolCall(film, "caption", node))
        for node in dict.fromkeys(captioned)
        if films is not None
    }
    return {
        "film": film,
        "seconds": tree.borders[-1],
        "cells": [[list(node), *(round(second, 1) for second in tree.span(node))] for node in cells],
        "captions": {name: text for name, text in captions.items() if text is not None},
    }


def call_rows(
    film: str, calls: Sequence[Turn[NavigateTurn]], turns: Sequence[Turn[Any]], films: ReportFilms | None
) -> list[dict[str, Any]]:
    """Return what the page shows of calls into a film.

    Args:
        turns: that the calls begin; the one after a look shows its clip.
    """
    return [_call(film, turn, turns[place + 1 :], films) for place, turn in enumerate(calls)]


def _call(film: str, turn: Turn[NavigateTurn], later: Sequence[Turn[Any]], films: ReportFilms | None) -> dict[str, Any]:
    call, text = turn.record, None
    is_look = call.tool == "look" and call.status == "ok" and call.node is not None
    if films is not None and call.status in ("ok", "repeat") and call.tool in ("caption", "video_qa"):
        text = films.said(ToolCall(film, call.tool, call.node, call.words))
    return {
        "number": turn.number,
        "video": node_clip(film, call.node or ()) if is_look else "",
        "clip": _hash_of_look(later, turn) if is_look else None,
        "status": call.status,
        "tool": call.tool,
        "node": call.node,
        "words": call.words,
        "cost": call.cost,
        "left": call.left,
        "cached": call.cached,
        "nodes": call.nodes,
        "said": text,
    }


def _hash_of_look(later: Sequence[Turn[Any]], turn: Turn[NavigateTurn]) -> str:
    """Return the content of the clip that a turn has asked for: it is the first new one of the turn after it."""
    return later[0].clips[len(turn.clips)].content_hash if later and len(later[0].clips) > len(turn.clips) else ""
