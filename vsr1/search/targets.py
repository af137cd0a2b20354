"""What the learner's auxiliary loss compares a refined query with."""

from __future__ import annotations

from collections.abc import Iterable


def negatives_of(task_negatives: Iterable[str], shown: str, right: str) -> list[str]:
    """Return the wrong videos of a turn, the one shown last: for the retrieval reward and the retrieval loss alike.

    Args:
        task_negatives: of the task, nearest first.
        shown: in this turn.
        right: the right video, which is never among them.
    """
    return [video for video in dict.fromkeys([*task_negatives, shown]) if video != right]
