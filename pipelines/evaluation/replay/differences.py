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
    stage: str
    status: Literal["ok", "differs", "not checked"]
    detail: str


def finding(stage: str, check: Callable[..., str], *args: Any) -> Finding:
    """Run a check, which returns what is to be said of agreement."""
    try:
        return Finding(stage, "ok", check(*args))
    except Differs as difference:
        return Finding(stage, "differs", str(difference))
    except NotChecked as reason:
        return Finding(stage, "not checked", str(reason))


def same(what: str, recorded: object, found: object) -> None:
    if recorded != found:
        raise Differs(f"{what}: recorded {recorded!r}, recomputed {found!r}")


def same_sequence(what: str, recorded: Sequence[object], found: Sequence[object]) -> None:
    """Of tokens or characters; names the first place that differs, counted from 0."""
    missing = object()
    for place, (a, b) in enumerate(zip_longest(recorded, found, fillvalue=missing)):
        if a != b:
            told = ["nothing" if value is missing else repr(value) for value in (a, b)]
            raise Differs(
                f"{what}, place {place}: recorded {told[0]}, recomputed {told[1]} (lengths {len(recorded)} and "
                f"{len(found)})"
            )


def same_numbers(what: str, recorded: Sequence[float], found: Sequence[float], tolerance: float) -> np.ndarray:
    """Distances float64 [n] of pairs that agree."""
    same(f"{what}, how many", len(recorded), len(found))
    apart = np.abs(np.asarray(recorded, np.float64) - np.asarray(found, np.float64))
    bad = np.flatnonzero(~(apart <= tolerance))
    if len(bad):
        place = int(bad[0])
        mean = float(apart.mean())
        raise Differs(
            f"{what}: differs by {apart.max():.3g} at most, {mean:.3g} in the mean; first at place {place}: recorded "
            f"{recorded[place]:.6g}, recomputed {found[place]:.6g} (tolerance {tolerance:g})"
        )
    return apart


def same_ranking(
    what: str,
    recorded: Sequence[tuple[str, float]],
    found: Sequence[tuple[str, float]],
    scores: Mapping[str, float],
    tolerance: float,
) -> np.ndarray:
    """Distances of the scores; videos whose scores are within the tolerance of each other may change places.

    Args:
        scores: of all videos of the corpus, recomputed.
    """
    for video, _ in recorded:
        if video not in scores:
            raise Differs(f"{what}: {video!r} is not in the corpus of {len(scores)} videos")
    own = [scores[video] for video, _ in recorded]
    apart = same_numbers(f"{what}, scores of the videos", [score for _, score in recorded], own, tolerance)
    same_numbers(f"{what}, best scores", own, [score for _, score in found], tolerance)
    return apart


def same_rank(what: str, recorded: int, scores: Mapping[str, float], video: str, tolerance: float) -> None:
    """A rank from 1, ties within the tolerance in any order."""
    every = np.fromiter(scores.values(), np.float64)
    best = 1 + int((every > scores[video] + tolerance).sum())
    worst = int((every >= scores[video] - tolerance).sum())
    if not best <= recorded <= worst:
        told = str(best) if best == worst else f"{best} to {worst}"
        raise Differs(f"{what}: recorded {recorded}, recomputed {told}")
