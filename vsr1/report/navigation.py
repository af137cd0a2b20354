"""Episodes of navigation on the page: the tree of the film and the calls into it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from vsr1.episode.trajectory import Turn
from vsr1.navigate.calls import ToolCall, node_clip
from vsr1.navigate.prompts import name_of
from vsr1.navigate.record import NavigateTrajectory, NavigateTurn, is_right, visited
from vsr1.navigate.tree import Node

Said = Callable[[ToolCall], str | None]  # what a tool has said, None where nobody has kept it


def navigation_row(trajectory: NavigateTrajectory, said: Said) -> dict[str, Any]:
    """Return what the page keeps of an episode beside what every environment has."""
    task, last, tree = trajectory.task, trajectory.last.record, trajectory.task.tree
    named = [node for turn in trajectory.turns for node in turn.record.nodes]
    opened = {node[:length] for node in [*visited(trajectory), *named] for length in range(1, len(node))}
    cells = [*tree.roots, *(part for node in sorted(opened) for part in tree.children(node))]
    read = [*tree.roots, *_captioned(trajectory)]
    captions = {name_of(node) or "all": said(ToolCall(task.film, "caption", node)) for node in dict.fromkeys(read)}
    outcomes = {"answered": "wrong answer", "abstained": "abstained"}
    return {
        "kind": "navigate",
        "query_id": f"{task.question_id}@{task.budget:g}",
        "query": task.question,
        "options": task.options,
        "answer": task.answer,
        "answered": last.words if last.status == "answered" else "",
        "film": task.film,
        "seconds": task.seconds,
        "budget": task.budget,
        "clues": [list(clue) for clue in task.clues],
        "cells": [[list(node), *(round(second, 1) for second in tree.span(node))] for node in cells],
        "captions": {name: text for name, text in captions.items() if text is not None},
        "outcome": "right answer" if is_right(trajectory) else outcomes.get(last.status, "no answer"),
        "turns": [_turn(trajectory, place, said) for place in range(len(trajectory.turns))],
    }


def _captioned(trajectory: NavigateTrajectory) -> list[Node]:
    turns = (turn.record for turn in trajectory.turns)
    return [turn.node for turn in turns if turn.tool == "caption" and turn.status == "ok" and turn.node is not None]


def _turn(trajectory: NavigateTrajectory, place: int, said: Said) -> dict[str, Any]:
    film, turn = trajectory.task.film, trajectory.turns[place]
    call = turn.record
    is_look = call.tool == "look" and call.status == "ok" and call.node is not None
    is_read = call.status in ("ok", "repeat") and call.tool in ("caption", "video_qa")
    return {
        "number": turn.number,
        "video": node_clip(film, call.node or ()) if is_look else "",
        "clip": _hash_of_look(trajectory.turns[place + 1 :], turn) if is_look else "",
        "status": call.status,
        "tool": call.tool,
        "node": call.node,
        "words": call.words,
        "cost": call.cost,
        "left": call.left,
        "cached": call.cached,
        "nodes": call.nodes,
        "said": said(ToolCall(film, call.tool, call.node, call.words)) if is_read and call.tool else None,
    }


def _hash_of_look(later: Sequence[Turn[NavigateTurn]], turn: Turn[NavigateTurn]) -> str:
    """Return the content of the clip that a turn has asked for: it is the first new one of the turn after it."""
    return later[0].clips[len(turn.clips)].content_hash if later and len(later[0].clips) > len(turn.clips) else ""
