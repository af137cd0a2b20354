"""How a recorded value and the recomputed one differ: each function raises `Differs` with what, where and by how much.

`NotChecked` is the third outcome of a check: what it needs is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Literal

import numpy as np


class Differs(Exception):  # noqa: N818  # a finding
    """The recorded and the recomputed value are not the same."""


class NotChecked(Exception):  # noqa: N818  # a finding
    """What the check needs is missing; the message says what."""


@dataclass(frozen=True)
class Finding:
    """How the check of one stage ended."""

    stage: str
    status: Literal["ok", "differs", "not checked"]
    detail: str


def finding(stage: str, check: Callable[..., str], *args: Any) -> Finding:
    """Run a check, which returns what is to be said of agreement, and return how it ended."""
    try:
        return Finding(stage, "ok", check(*args))
    except Differs as difference:
        return Finding(stage, "differs", str(difference))
    except NotChecked as reason:
        return Finding(stage, "not checked", str(reason))


def same(what: str, recorded: object, result: object) -> None:
    """Raise `Differs` unless two values are equal."""
    if recorded != result:
        raise Differs(f"{what}: recorded {recorded!r}, recomputed {result!r}")


def same_sequence(what: str, recorded: Sequence[object], result: Sequence[object]) -> None:
    """Compare tokens or characters; name the first place that differs, counted from 0."""
    missing = object()
    for place, pair in enumerate(zip_longest(recorded, result, fillvalue=missing)):
        if pair[0] != pair[1]:
            old, new = ("nothing" if value is missing else repr(value) for value in pair)
            lengths = f"lengths {len(recorded)} and {len(result)}"
            raise Differs(f"{what}, place {place}: recorded {old}, recomputed {new} ({lengths})")


def same_numbers(what: str, recorded: Sequence[float], result: Sequence[float], tolerance: float) -> np.ndarray:
    """Compare numbers one by one; return the distances float64 [n] of those that agree."""
    same(f"{what}, how many", len(recorded), len(result))
    distances = np.abs(np.asarray(recorded, np.float64) - np.asarray(result, np.float64))
    bad = np.flatnonzero(~(distances <= tolerance))
    if len(bad):
        place = int(bad[0])
        raise Differs(
            f"{what}: differs by {distances.max():.3g} at most, {distances.mean():.3g} in the mean; first at place "
            f"{place}: recorded {recorded[place]:.6g}, recomputed {result[place]:.6g} (tolerance {tolerance:g})"
        )
    return distances


def same_ranking(
    what: str,
    recorded: Sequence[tuple[str, float]],
    result: Sequence[tuple[str, float]],
    scores: Mapping[str, float],
    tolerance: float,
) -> np.ndarray:
    """Compare rankings; videos whose scores are within the tolerance of each other may change places.

    Args:
        scores: of all videos of the corpus, recomputed.

    Returns:
        Distances of the scores float64 [n].
    """
    for video, _ in recorded:
        if video not in scores:
            raise Differs(f"{what}: {video!r} is not in the corpus of {len(scores)} videos")
    own = [scores[video] for video, _ in recorded]
    distances = same_numbers(f"{what}, scores of the videos", [score for _, score in recorded], own, tolerance)
    same_numbers(f"{what}, best scores", own, [score for _, score in result], tolerance)
    return distances


def same_rank(what: str, recorded: int, scores: Mapping[str, float], video: str, tolerance: float) -> None:
    """Compare ranks from 1; videos that tie within the tolerance may be in any order."""
    every = np.fromiter(scores.values(), np.float64)
    best = 1 + int((every > scores[video] + tolerance).sum())
    worst = int((every >= scores[video] - tolerance).sum())
    if not best <= recorded <= worst:
        raise Differs(f"{what}: recorded {recorded}, recomputed {best if best == worst else f'{best} to {worst}'}")
