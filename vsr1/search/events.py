"""What a search environment tells while an episode runs: plain facts, in the order in which they happen.

A turn is `Retrieved`, `TurnStarted`, `Judged`, and `Refined` where its reply refines the query; the reply's text in
between comes from the engine. Nobody has to listen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vsr1.episode.moments import Span
from vsr1.search.record import Ranking, Verdict


@dataclass(frozen=True)
class Retrieved:
    """The ranking that a turn's video is taken from."""

    turn: int  # from 1
    ranking: Ranking
    index_version: str


@dataclass(frozen=True)
class TurnStarted:
    """A video is shown."""

    turn: int
    video_id: str


@dataclass(frozen=True)
class Judged:
    """What the reply says of the video that was shown."""

    turn: int
    video_id: str
    verdict: Verdict
    span: Span | None  # seconds
    think: str
    seconds: float  # since the video was shown


@dataclass(frozen=True)
class Refined:
    """The query was refined, and what that did to the ranking."""

    turn: int
    before: Ranking
    after: Ranking


SearchEvent = Retrieved | TurnStarted | Judged | Refined
Observe = Callable[[SearchEvent], None]


def unobserved(event: SearchEvent) -> None:
    """For episodes that nobody watches."""
