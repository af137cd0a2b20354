"""Who plays samples: the members of a fleet of rollout workers, as a state machine without input and output.

It is told what happens to the members (`started`, `holds`, `answered`, `played`, `lost`) and what is wanted (`push`,
`scale`, `drain`), and says what is to be done (`orders`). Its clock is given to it.

    starting ──► stale ──► healthy ◄──► suspect        no token for half a deadline, or failing where others do not
       │         │   ▲        │            │
       │         │   └─ push ─┴────────────┤
       └─────────┴──► dead ◄───────────────┘
                       │ └──► restarting ──► stale     the budget of restarts is left
                       └────► retired                  it is spent
    any of them ──► draining ──► retired               nothing new; what it plays comes to its end, or goes back

No arrow leads to healthy but from stale and suspect: a member serves only with the current weights, whose version and
fingerprint it has named since its process began. A spare is started and waits as stale, until a member dies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vsr1.seats import AWAKE, Order, Seat, State
from vsr1.settings.parts import FleetConfig

FEWEST_OUTCOMES = 5  # failures of which the breaker can tell
TRIPS = 3  # of the breaker without a success, after each of which a member starts anew


class FleetError(RuntimeError):
    """No member is left that could be healed; the message has the last reason of each."""


class Fleet:
    """Call `orders` at least every half second, after what has happened since was reported.

    Args:
        at_once: samples that a member plays at one time.
        clock: returns seconds.
    """

    def __init__(self, config: FleetConfig, at_once: int, clock: Callable[[], float]) -> None:
        self._config, self._at_once, self._clock = config, at_once, clock
        self.seats: dict[str, Seat] = {}
        self.version = 0  # of the current weights
        self.fingerprint: str | None = None  # of them; None until the first member has verified them
        self.events: list[dict[str, Any]] = []  # faults and healings, for whoever takes them out
        self._count = 0  # of names given
        self._least = 0  # members that were asked for
        self._full: float | None = None  # since when nobody has had room
        self._needed = clock()  # when all members were needed last

    def scale(self, count: int) -> None:
        """Let that many members serve: new ones start, or some drain, those that do not serve and the idle first.

        The fleet may grow beyond it, see `fleet.most`.

        Raises:
            ValueError: fewer than one; nothing would be rolled out.
        """
        if count < 1:
            raise ValueError(f"a fleet of {count} rollout workers plays nothing; keep one at least")
        self._least = count
        self._resize(count)

    def _resize(self, count: int) -> None:
        seats = self._wanted()
        for _ in range(count - len(seats)):
            self._add()
        leaving = sorted(reversed(seats), key=lambda seat: (seat.state is State.HEALTHY, seat.load))
        for seat in leaving[: max(0, len(seats) - count)]:
            self.drain(seat.name, "scaled down")

    def drain(self, name: str, reason: str, *, limit_s: float | None = None, replace: bool = False) -> None:
        """Give a member nothing new; it ends when it plays nothing, or after a time.

        Args:
            limit_s: this time; None: `fleet.drain_s`.
            replace: start another in its place.
        """
        seat = self.seats[name]
        if seat.state in (State.DRAINING, State.RETIRED):
            return
        spare = seat.spare
        seat.deadline = self._clock() + (self._config.drain_s if limit_s is None else limit_s)
        self._enter(seat, State.DRAINING, reason)
        if replace and not spare and not self._promote(seat):
            self._add()

    def started(self, name: str) -> None:
        """Report that the engine of a member is up, with the weights of its checkpoint."""
        seat = self.seats[name]
        if seat.state in (State.STARTING, State.RESTARTING):
            seat.heal["start"] = self._clock() - seat.since
            self._enter(seat, State.STALE)
            if seat.spare:
                self._tell("spare ready", seat, seconds=seat.heal | {"all": sum(seat.heal.values())})

    def holds(self, name: str, version: int, fingerprint: str) -> None:
        """Report which weights a member has taken and verified; it serves if they are the current ones."""
        seat = self.seats[name]
        if seat.pulling is not None:
            seat.heal["pull"] = self._clock() - seat.pulling
        seat.pulling, seat.seen = None, self._clock()
        if seat.state is not State.STALE or seat.spare or version != self.version:
            return
        if self.fingerprint is None:
            self.fingerprint = fingerprint
        if fingerprint != self.fingerprint:
            what = f"fingerprint {fingerprint}, not {self.fingerprint}"
            self.lost(name, f"it holds other weights than version {version}: {what}")
            return
        self._enter(seat, State.HEALTHY)
        seat.is_on_trial = seat.trips > 0
        if "start" in seat.heal or "detect" in seat.heal:
            kind = "healed" if "detect" in seat.heal else "serving"  # for the first time
            self._tell(kind, seat, seconds=seat.heal | {"all": sum(seat.heal.values())})
        seat.heal = {}

    def postpone(self, name: str) -> None:
        """Let a member that was to pull weights do so later, as nobody has them yet."""
        self.seats[name].pulling = None

    def answered(self, name: str) -> None:
        """Report a sign of life: a token, or a sample that came to its end."""
        seat = self.seats[name]
        seat.seen, seat.probed = self._clock(), None
        if seat.state is State.SUSPECT and not seat.trips:
            self._enter(seat, State.HEALTHY)

    def given(self, name: str) -> None:
        """Report that a member has got a sample."""
        seat = self.seats[name]
        seat.load, seat.samples = seat.load + 1, seat.samples + 1

    def played(self, name: str, *, failed: bool = False) -> None:
        """Report that a sample has left a member, played to its end or failed there."""
        seat = self.seats[name]
        seat.load -= 1
        seat.note(failed, self._config.breaker_outcomes)
        if not failed:
            seat.trips, seat.is_on_trial = 0, False
            self.answered(name)
        elif seat.state is State.HEALTHY and self._fails_alone(seat):
            self._trip(seat)
        else:
            seat.is_on_trial = False

    def taken_back(self, name: str) -> None:
        """Report that a sample has left a member whose process ended."""
        self.seats[name].load -= 1

    def lost(self, name: str, reason: str, detect_s: float | None = None) -> None:
        """Report that a member's process ended, or that it must.

        Args:
            detect_s: seconds since the process was in order, where somebody has looked at it; None: since the last sign
                of life of its engine.
        """
        seat, now = self.seats[name], self._clock()
        if seat.state in (State.DEAD, State.RETIRED):
            return
        if seat.state is State.DRAINING:
            seat.deadline = now
            return
        is_starting = seat.state in (State.STARTING, State.RESTARTING)
        if detect_s is None:
            detect_s = 0.0 if is_starting else now - seat.seen
        seat.heal = {"detect": detect_s}
        self._enter(seat, State.DEAD, reason)
        self._tell("fault", seat, seconds=dict(seat.heal))
        if not seat.spare:
            seat.spare = self._promote(seat)

    def awake(self) -> list[str]:
        """Return the names of the members whose engines are up and that are to serve."""
        return [seat.name for seat in self.seats.values() if seat.state in AWAKE and not seat.spare]

    def is_taken(self) -> bool:
        """Tell whether more than one member takes weights now."""
        return sum(seat.pulling is not None for seat in self.seats.values()) > 1

    def push(self, version: int) -> None:
        """Make other weights the current ones: who serves has to take them first."""
        self.version, self.fingerprint = version, None
        for seat in self.seats.values():
            if seat.state in (State.HEALTHY, State.SUSPECT):
                self._enter(seat, State.STALE)

    def pick(self) -> str | None:
        """Return the member that the next sample goes to: the least loaded that serves and has room; None: nobody."""
        serving = [seat for seat in self.seats.values() if self._room(seat) > 0]
        return min(serving, key=lambda seat: (seat.load, seat.samples)).name if serving else None

    @property
    def room(self) -> int:
        """Return how many samples all members together take now."""
        return sum(self._room(seat) for seat in self.seats.values())

    @property
    def is_complete(self) -> bool:
        """Tell whether all members serve and all spares are ready."""
        ready = [State.STALE if seat.spare else State.HEALTHY for seat in self._living()]
        spares = sum(seat.spare for seat in self._living())
        return spares >= self._config.spares and ready == [seat.state for seat in self._living()]

    @property
    def is_settled(self) -> bool:
        """Tell whether some member serves and none is on its way to the current weights."""
        states = [seat.state for seat in self.seats.values() if not seat.spare]
        return State.HEALTHY in states and State.STALE not in states

    def orders(self) -> list[Order]:
        """Judge what is late, and return what is to be done now; each order is given once.

        Raises:
            FleetError: no member is left that could be healed.
        """
        now = self._clock()
        for _ in range(self._config.spares - sum(seat.spare for seat in self._living())):
            self._add().spare = True
        for seat in list(self.seats.values()):
            if reason := seat.lateness(now, self._config):
                self.lost(seat.name, reason)
                continue
            self._doubt(seat, now)
            if seat.state is State.SUSPECT and seat.is_rested(now, self._config.breaker_s):
                seat.is_on_trial = True
                seat.outcomes.clear()
                self._enter(seat, State.HEALTHY)
        self._adapt(now)
        orders = [order for seat in list(self.seats.values()) for order in self._due(seat, now)]
        if not self._living():
            reasons = "; ".join(f"{seat.name}: {seat.reason}" for seat in self.seats.values() if seat.reason)
            raise FleetError(f"no rollout worker is left, and fleet.restarts_per_hour is spent: {reasons}")
        return orders

    def counts(self) -> dict[str, int]:
        """Return the number of members in each state that has one."""
        states = [seat.state.value for seat in self.seats.values()]
        return {state: states.count(state) for state in dict.fromkeys(states)}

    def _adapt(self, now: float) -> None:
        """Grow by one where all have been full for long, and shrink by one where one could be spared for longer."""
        seats = self._wanted()
        is_full = all(seat.state is State.HEALTHY for seat in seats) and self.room == 0
        self._full = (now if self._full is None else self._full) if is_full else None
        if sum(seat.load for seat in seats) > (len(seats) - 1) * self._at_once:
            self._needed = now
        if self._full is not None and now - self._full >= self._config.grow_s and len(seats) < (self._config.most or 0):
            self._change(len(seats) + 1)
        elif now - self._needed >= self._config.shrink_s and len(seats) > self._least:
            self._change(len(seats) - 1)

    def _change(self, count: int) -> None:
        self._full, self._needed = None, self._clock()
        self.events.append({"kind": "scale", "role": "rollout", "workers": count, "reason": "fleet.most"})
        self._resize(count)

    def _due(self, seat: Seat, now: float) -> list[Order]:
        if seat.state is State.STARTING and not seat.is_ordered:
            seat.is_ordered = True
            return [Order("start", seat.name)]
        if seat.state is State.DEAD:
            if seat.recent_restarts(now) >= self._config.restarts_per_hour:
                reason = seat.reason
                self._enter(seat, State.RETIRED, f"{reason}; {len(seat.restarts)} restarts in an hour")
                return [Order("end", seat.name, reason)]
            seat.restarts.append(now)
            self._enter(seat, State.RESTARTING)
            return [Order("restart", seat.name, seat.reason)]
        if seat.state is State.DRAINING and (not seat.load or now >= seat.deadline):
            if seat.load:
                self._tell("handed_back", seat, samples=seat.load)
            self._enter(seat, State.RETIRED, seat.reason)
            return [Order("end", seat.name, seat.reason)]
        if seat.state is State.STALE and not seat.spare and seat.pulling is None:
            seat.pulling, seat.probed = now, None
            return [Order("pull", seat.name)]
        is_quiet = seat.probed is None and seat.pulling is None and now - seat.seen >= self._config.probe_every_s
        if seat.state in (*AWAKE, State.DRAINING) and is_quiet:
            seat.probed = now
            return [Order("probe", seat.name)]
        return []

    def _doubt(self, seat: Seat, now: float) -> None:
        """Give nothing to a member whose token is late by half of its limit."""
        if seat.state is State.HEALTHY and seat.probed is not None and now - seat.probed >= self._config.probe_s / 2:
            self._enter(seat, State.SUSPECT, "no token yet")
            self._tell("suspect", seat, seconds={"detect": now - seat.seen})

    def _fails_alone(self, seat: Seat) -> bool:
        """Tell whether a member fails where others do not; what fails everywhere is not the fault of a member."""
        others = [other for other in self.seats.values() if other is not seat and other.state is not State.RETIRED]
        outcomes = [failed for other in others for failed in other.outcomes]
        failures = sum(seat.outcomes)
        share, elsewhere = failures / len(seat.outcomes), sum(outcomes) / max(1, len(outcomes))
        is_enough = seat.is_on_trial or failures >= FEWEST_OUTCOMES
        return bool(others) and is_enough and share >= self._config.breaker_share and share > 2 * elsewhere

    def _trip(self, seat: Seat) -> None:
        seat.trips += 1
        seat.is_on_trial = False
        if seat.trips % TRIPS == 0:
            self.lost(seat.name, f"its samples fail: {sum(seat.outcomes)} of the last {len(seat.outcomes)}")
            return
        self._enter(seat, State.SUSPECT, f"{sum(seat.outcomes)} of its last {len(seat.outcomes)} samples failed")
        self._tell("suspect", seat)

    def _promote(self, dead: Seat) -> bool:
        """Let a spare that is ready serve in the place of a member; tell whether there was one."""
        for seat in self.seats.values():
            if seat.spare and seat.state is State.STALE:
                seat.spare, seat.probed = False, None
                seat.heal = {"detect": dead.heal.get("detect", 0.0)}
                return True
        return False

    def _room(self, seat: Seat) -> int:
        most = 1 if seat.is_on_trial else self._at_once
        return max(0, most - seat.load) if seat.state is State.HEALTHY else 0

    def _living(self) -> list[Seat]:
        return [seat for seat in self.seats.values() if seat.state not in (State.DRAINING, State.RETIRED)]

    def _wanted(self) -> list[Seat]:
        return [seat for seat in self._living() if not seat.spare]

    def _add(self) -> Seat:
        now, name = self._clock(), f"rollout-{self._count}"
        self._count += 1
        self.seats[name] = Seat(name, State.STARTING, now, seen=now)
        return self.seats[name]

    def _enter(self, seat: Seat, state: State, reason: str = "") -> None:
        seat.state, seat.since = state, self._clock()
        seat.reason = reason or seat.reason
        if state in (State.DEAD, State.STALE):
            seat.probed, seat.pulling, seat.is_on_trial, seat.seen = None, None, False, self._clock()
        if state is State.DEAD:
            seat.outcomes.clear()
        if state in (State.DRAINING, State.RETIRED):
            seat.spare = False
            self._tell(state.value, seat)

    def _tell(self, kind: str, seat: Seat, **fields: Any) -> None:
        self.events.append({"kind": kind, "role": "rollout", "member": seat.name, "reason": seat.reason, **fields})
