"""One place in a fleet of rollout workers: what is known of the member that has it, and what can be ordered for it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from vsr1.settings.parts import FleetConfig

HOUR_S = 3600.0


class State(StrEnum):
    STARTING = "starting"
    STALE = "stale"
    HEALTHY = "healthy"
    SUSPECT = "suspect"
    DEAD = "dead"
    RESTARTING = "restarting"
    DRAINING = "draining"
    RETIRED = "retired"


AWAKE = (State.STALE, State.HEALTHY, State.SUSPECT)


@dataclass(frozen=True)
class Order:
    """What is to be done with a member: `start` it, `restart` it, `probe` it, let it `pull` weights, or `end` it."""

    do: Literal["start", "restart", "probe", "pull", "end"]
    member: str
    reason: str = ""


@dataclass
class Seat:
    """What is known of one member."""

    name: str
    state: State
    since: float  # when it came into its state
    spare: bool = False
    load: int = 0  # samples that it plays
    samples: int = 0  # that it has got
    seen: float = 0.0  # last sign of life
    probed: float | None = None  # since when a probe is not answered
    pulling: float | None = None  # since when it takes weights
    outcomes: deque[bool] = field(default_factory=deque)  # whether its last samples failed
    is_on_trial: bool = False  # the breaker lets one sample through
    trips: int = 0  # of the breaker, since its last success
    restarts: deque[float] = field(default_factory=deque)  # when
    deadline: float = 0.0  # of a drain
    reason: str = ""  # of its last fault
    heal: dict[str, float] = field(default_factory=dict)  # seconds by part, since its last fault
    is_ordered: bool = False  # its first start has been ordered

    def note(self, failed: bool, most: int) -> None:
        """Add the outcome of a sample to the last ones."""
        self.outcomes.append(failed)
        while len(self.outcomes) > most:
            self.outcomes.popleft()

    def is_rested(self, now: float, first_s: float) -> bool:
        """Tell whether a suspect may be tried again: after so many seconds, each time twice as many, up to an hour."""
        return self.trips > 0 and now - self.since >= min(HOUR_S, first_s * 2 ** (self.trips - 1))

    def lateness(self, now: float, limits: FleetConfig) -> str:
        """Return why the member must be ended: what it was asked for takes longer than its limit; empty if nothing."""
        if self.state in (State.STARTING, State.RESTARTING):
            is_late = now - self.since >= limits.start_s
            return f"it was not ready within {limits.start_s:g} s (fleet.start_s)" if is_late else ""
        if self.pulling is not None and self.state is not State.DEAD:
            is_late = now - self.pulling >= limits.push_s
            return f"it had not taken weights within {limits.push_s:g} s (fleet.push_s)" if is_late else ""
        if self.probed is not None and self.state in (*AWAKE, State.DRAINING):
            is_late = now - self.probed >= limits.probe_s
            return f"it gave no token within {limits.probe_s:g} s (fleet.probe_s)" if is_late else ""
        return ""

    def recent_restarts(self, now: float) -> int:
        """Return how often it has started again in the last hour."""
        return of_last_hour(self.restarts, now)


def of_last_hour(moments: deque[float], now: float) -> int:
    """Return how many of the moments, the earliest first, are of the last hour; those before it leave the queue."""
    while moments and now - moments[0] > HOUR_S:
        moments.popleft()
    return len(moments)
