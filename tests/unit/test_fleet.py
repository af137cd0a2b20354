"""The fleet's state machine with a clock of its own: every arrow, the breaker, the gate of versions, joins, leaves."""

from collections.abc import Callable

import pytest

from vsr1.fleet import Fleet, FleetError
from vsr1.seats import Order, State
from vsr1.settings.parts import FleetConfig


class Time:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Played:
    """A fleet whose members do what they are told at once, unless a test says otherwise."""

    def __init__(self, count: int = 2, at_once: int = 4, **settings: float) -> None:
        self.time = Time()
        self.fleet = Fleet(FleetConfig(**settings), at_once, self.time)
        self.deaf: set[str] = set()  # members that answer nothing
        self.slow: set[str] = set()  # members that never end their start or their pull
        self.prints: dict[str, str] = {}  # fingerprint of a member, where it is another than that of the others
        self.orders: list[Order] = []
        self.fleet.scale(count)
        self.go(0.5)

    def go(self, seconds: float) -> None:
        end = self.time.now + seconds
        while self.time.now < end:
            self.time.now += 0.25
            for order in self.fleet.orders():
                self.orders.append(order)
                self._obey(order)

    def _obey(self, order: Order) -> None:
        name = order.member
        if order.do in ("start", "restart") and name not in self.slow:
            self.fleet.started(name)
        elif order.do == "pull" and name not in self.slow:
            version = self.fleet.version
            self.fleet.holds(name, version, self.prints.get(name, f"print {version}"))
        elif order.do == "probe" and name not in self.deaf:
            self.fleet.answered(name)

    def states(self) -> list[str]:
        return [str(seat.state) for seat in self.fleet.seats.values()]

    def events(self, kind: str) -> list[dict]:
        return [event for event in self.fleet.events if event["kind"] == kind]

    def play(self, fails: Callable[[str], bool] = lambda name: False) -> str | None:
        name = self.fleet.pick()
        if name is not None:
            self.fleet.given(name)
            self.fleet.played(name, failed=fails(name))
        return name


def test_a_member_serves_once_it_has_started_and_holds_the_current_weights() -> None:
    played = Played(1)
    assert played.states() == ["healthy"]
    assert [order.do for order in played.orders] == ["start", "pull"]
    played.slow.add("rollout-1")
    played.fleet.scale(2)
    played.go(1)
    assert played.states() == ["healthy", "starting"]
    assert {played.fleet.pick() for _ in range(9)} == {"rollout-0"}


def test_samples_go_to_the_least_loaded_and_stop_where_there_is_no_room() -> None:
    played = Played(2, at_once=2)
    assert played.fleet.room == 4
    given = []
    while (name := played.fleet.pick()) is not None:
        played.fleet.given(name)
        given.append(name)
    assert given == ["rollout-0", "rollout-1"] * 2
    assert played.fleet.room == 0
    played.fleet.played("rollout-1")
    assert played.fleet.pick() == "rollout-1"


def test_an_engine_without_a_token_gets_no_samples_within_five_seconds_and_is_dead_at_its_deadline() -> None:
    played = Played(2)
    played.deaf.add("rollout-1")
    played.slow.add("rollout-1")
    began = played.time.now
    while played.states()[1] == "healthy":
        played.go(0.25)
    assert played.states()[1] == "suspect"
    assert played.time.now - began <= 5.0
    [suspect] = played.events("suspect")
    assert suspect["member"] == "rollout-1" and suspect["seconds"]["detect"] <= 5.0
    assert played.fleet.pick() == "rollout-0"
    while played.states()[1] == "suspect":
        played.go(0.25)
    assert played.time.now - began <= 9.0
    assert played.states() == ["healthy", "restarting"]
    [fault] = played.events("fault")
    assert fault["member"] == "rollout-1" and fault["reason"] == "it gave no token within 7 s (fleet.probe_s)"
    assert 7.0 <= fault["seconds"]["detect"] <= 9.0


def test_a_suspect_that_answers_serves_again() -> None:
    played = Played(1)
    played.deaf.add("rollout-0")
    while played.states() != ["suspect"]:
        played.go(0.25)
    played.fleet.answered("rollout-0")
    assert played.states() == ["healthy"] and not played.events("fault")


def test_a_driver_that_was_busy_for_long_asks_before_it_judges() -> None:
    played = Played(1)
    played.time.now += 600
    played.go(0.25)
    assert played.states() == ["healthy"] and not played.events("fault")


def test_who_plays_needs_no_probe() -> None:
    played = Played(1)
    played.orders.clear()
    for _ in range(20):
        played.play()
        played.go(0.5)
    assert played.orders == []


def test_a_dead_member_starts_anew_and_its_healing_is_told_by_part() -> None:
    played = Played(2)
    played.fleet.lost("rollout-0", "process 7 ended")
    assert played.states() == ["dead", "healthy"]
    assert played.fleet.pick() == "rollout-1"
    played.slow.add("rollout-0")
    played.go(2.0)
    assert played.states() == ["restarting", "healthy"]
    played.fleet.started("rollout-0")
    assert played.states() == ["stale", "healthy"]
    played.go(0.25)
    played.time.now += 1.0
    played.fleet.holds("rollout-0", 0, "print 0")
    assert played.states() == ["healthy", "healthy"]
    [healed] = played.events("healed")
    assert healed["seconds"]["start"] == pytest.approx(1.75)
    assert healed["seconds"]["pull"] == pytest.approx(1.0)
    assert healed["seconds"]["all"] == pytest.approx(
        sum(healed["seconds"][part] for part in ("detect", "start", "pull"))
    )


def test_the_seconds_until_a_fault_was_found_are_those_of_who_has_looked_at_the_process() -> None:
    """A push is no sign of life, and a member that starts has given none."""
    played = Played(2)
    played.slow.update(["rollout-0", "rollout-1"])
    played.time.now += 2.0
    played.fleet.push(1)
    played.fleet.lost("rollout-0", "process 7 stood still", 2.5)
    played.go(0.5)
    played.fleet.lost("rollout-0", "process 8 ended", 0.5)
    assert [event["seconds"] for event in played.events("fault")] == [{"detect": 2.5}, {"detect": 0.5}]


def test_a_start_that_never_ends_is_a_death() -> None:
    played = Played(1, start_s=10)
    played.slow.add("rollout-1")
    played.fleet.scale(2)
    played.go(10.5)
    assert [order.do for order in played.orders if order.member == "rollout-1"] == ["start", "restart"]
    assert "fleet.start_s" in played.events("fault")[0]["reason"]


def test_the_budget_of_restarts_ends_a_member_and_the_last_one_ends_the_fleet() -> None:
    played = Played(2, restarts_per_hour=2)
    for _ in range(3):
        played.fleet.lost("rollout-0", "it burns")
        played.go(0.5)
    assert played.states() == ["retired", "healthy"]
    played.time.now += 3600  # the other one has none of these on its account, and an hour later a new one
    for _ in range(2):
        played.fleet.lost("rollout-1", "it burns too")
        played.go(0.5)
    assert played.states() == ["retired", "healthy"]
    played.fleet.lost("rollout-1", "it burns too")
    with pytest.raises(FleetError, match=r"rollout-0: it burns; 2 restarts.*rollout-1: it burns too"):
        played.go(0.5)


def test_restarts_are_forgotten_after_an_hour() -> None:
    played = Played(1, restarts_per_hour=1)
    for _ in range(4):
        played.fleet.lost("rollout-0", "it burns")
        played.go(0.5)
        assert played.states() == ["healthy"]
        played.time.now += 3601


def test_a_push_makes_everybody_stale_and_only_the_current_version_serves() -> None:
    played = Played(2)
    played.slow.update(["rollout-0", "rollout-1"])
    played.fleet.push(1)
    assert played.states() == ["stale", "stale"] and played.fleet.pick() is None and not played.fleet.is_settled
    played.go(0.25)
    played.fleet.push(2)  # while version 1 is on its way
    played.fleet.holds("rollout-0", 1, "print 1")
    assert played.states() == ["stale", "stale"]
    played.go(0.25)
    played.fleet.holds("rollout-0", 2, "print 2")
    assert played.states() == ["healthy", "stale"] and played.fleet.pick() == "rollout-0"
    assert not played.fleet.is_settled
    pulls = [order.member for order in played.orders if order.do == "pull"]
    assert pulls[2:] == ["rollout-0", "rollout-1", "rollout-0"]


def test_a_member_with_another_fingerprint_never_serves() -> None:
    played = Played(2)
    played.prints["rollout-1"] = "something else"
    played.fleet.push(1)
    for _ in range(8):
        played.go(0.25)
        assert played.fleet.pick() in (None, "rollout-0")
    [fault, *_] = played.events("fault")
    assert fault["member"] == "rollout-1"
    assert fault["reason"] == "it holds other weights than version 1: fingerprint something else, not print 1"
    del played.prints["rollout-1"]
    played.go(1)
    assert played.states() == ["healthy", "healthy"]


def test_a_member_that_does_not_take_weights_in_time_starts_anew_and_the_others_go_on() -> None:
    played = Played(2, push_s=20)
    played.slow.add("rollout-1")
    played.fleet.push(1)
    played.go(5)
    assert played.states() == ["healthy", "stale"] and not played.events("fault")
    played.slow.clear()
    played.go(16)
    assert "fleet.push_s" in played.events("fault")[0]["reason"]
    assert played.states() == ["healthy", "healthy"]


def test_one_becomes_three_two_and_one_again_and_nobody_joins_with_old_weights() -> None:
    played = Played(1)
    played.fleet.push(4)
    played.go(0.5)
    played.slow.update(["rollout-1", "rollout-2"])
    played.fleet.scale(3)
    played.go(3)
    assert played.states() == ["healthy", "starting", "starting"] and played.fleet.room == 4
    played.fleet.started("rollout-1")
    played.fleet.started("rollout-2")
    played.go(0.25)
    played.fleet.lost("rollout-1", "killed while it takes weights")
    assert played.fleet.room == 4
    played.slow.clear()
    played.fleet.holds("rollout-2", 4, "print 4")
    played.go(1)
    assert played.states() == ["healthy"] * 3 and played.fleet.room == 12
    played.fleet.given("rollout-0")
    played.fleet.given("rollout-1")
    played.fleet.scale(2)
    assert played.states() == ["healthy", "healthy", "draining"]  # the one that plays nothing
    played.fleet.scale(1)
    played.go(0.25)
    assert played.states() == ["healthy", "draining", "retired"]
    played.fleet.played("rollout-1")
    played.go(0.25)
    assert played.states() == ["healthy", "retired", "retired"]
    assert not played.events("handed_back")
    with pytest.raises(ValueError, match="keep one at least"):
        played.fleet.scale(0)


def test_a_full_fleet_grows_and_one_that_could_be_spared_leaves_again() -> None:
    played = Played(1, at_once=2, most=2, grow_s=30, shrink_s=100)
    for _ in range(2):
        played.fleet.given("rollout-0")
    played.go(29)
    assert played.states() == ["healthy"]
    played.go(2)
    assert played.states() == ["healthy", "healthy"] and played.events("scale")[0]["workers"] == 2
    for _ in range(2):
        played.fleet.given("rollout-1")
    played.go(200)
    assert played.states() == ["healthy", "healthy"]  # no more than `most`
    played.fleet.played("rollout-0")
    played.go(200)
    assert played.states() == ["healthy", "healthy"]  # three samples need two members
    played.fleet.played("rollout-0")
    played.go(101)
    assert played.states() == ["retired", "healthy"]
    played.fleet.played("rollout-1")
    played.fleet.played("rollout-1")
    played.go(300)
    assert played.states() == ["retired", "healthy"]  # as many as were asked for stay


def test_who_was_wanted_for_a_moment_only_never_starts() -> None:
    played = Played(1)
    played.fleet.scale(2)
    played.fleet.scale(1)
    played.go(0.5)
    assert played.states() == ["healthy", "retired"]
    assert [order.do for order in played.orders if order.member == "rollout-1"] == ["end"]


def test_who_does_not_serve_leaves_first() -> None:
    played = Played(2)
    played.slow.add("rollout-0")
    played.fleet.lost("rollout-0", "gone")
    played.go(0.5)
    played.fleet.scale(1)
    assert played.states() == ["draining", "healthy"]


def test_a_leaver_that_does_not_come_to_an_end_hands_its_samples_back() -> None:
    played = Played(2, drain_s=10)
    played.fleet.given("rollout-1")
    played.fleet.drain("rollout-1", "its node leaves", limit_s=5, replace=True)
    played.go(4.5)
    assert played.states() == ["healthy", "draining", "healthy"]
    played.go(1)
    assert played.states() == ["healthy", "retired", "healthy"]
    assert Order("end", "rollout-1", "its node leaves") in played.orders
    assert played.events("handed_back")[0]["samples"] == 1
    played.fleet.taken_back("rollout-1")


def test_a_leaver_that_dies_is_retired() -> None:
    played = Played(2)
    played.fleet.given("rollout-1")
    played.fleet.drain("rollout-1", "scaled down")
    played.fleet.lost("rollout-1", "gone")
    played.go(0.25)
    assert played.states() == ["healthy", "retired"] and played.orders[-1].do == "end"


def test_a_spare_serves_in_the_place_of_a_dead_member_which_becomes_the_spare() -> None:
    played = Played(1, spares=1)
    played.fleet.push(3)
    played.go(0.5)
    assert played.states() == ["healthy", "stale"] and played.fleet.room == 4
    played.slow.add("rollout-0")
    played.fleet.lost("rollout-0", "gone")
    assert played.fleet.pick() is None
    played.go(0.25)
    assert played.fleet.pick() == "rollout-1"
    assert played.events("healed")[0]["member"] == "rollout-1"
    played.fleet.started("rollout-0")
    played.go(2)
    assert played.states() == ["stale", "healthy"] and len(played.fleet.seats) == 2
    assert [event["member"] for event in played.events("spare ready")] == ["rollout-1", "rollout-0"]


def test_a_deaf_spare_is_dead_too() -> None:
    played = Played(1, spares=1)
    played.deaf.add("rollout-1")
    played.go(9)
    assert played.events("fault")[0]["member"] == "rollout-1"


def test_a_member_that_fails_at_once_gets_less_than_a_hundredth_of_the_samples() -> None:
    played = Played(4)
    busy: list[tuple[float, str]] = []  # when it ends, on whom
    given = dict.fromkeys(played.fleet.seats, 0)
    while sum(given.values()) < 5_000:
        while (name := played.fleet.pick()) is not None and name != "rollout-2":
            played.fleet.given(name)
            given[name] += 1
            busy.append((played.time.now + 0.5, name))
        while name == "rollout-2":  # an answer within a millisecond
            given[name] += 1
            played.fleet.given(name)
            played.fleet.played(name, failed=True)
            name = played.fleet.pick()
        played.go(0.25)
        for ended in [entry for entry in busy if entry[0] <= played.time.now]:
            busy.remove(ended)
            played.fleet.played(ended[1])
    assert given["rollout-2"] < 50
    assert [event["member"] for event in played.events("suspect")][:2] == ["rollout-2"] * 2
    assert played.events("fault")[0]["reason"].startswith("its samples fail")


def test_what_fails_everywhere_is_no_members_fault() -> None:
    played = Played(3)
    for _ in range(100):
        played.play(lambda name: True)
    assert played.states() == ["healthy"] * 3
    alone = Played(1)
    for _ in range(100):
        alone.play(lambda name: True)
    assert alone.states() == ["healthy"]


def test_a_suspect_is_tried_with_one_sample_and_serves_fully_after_its_success() -> None:
    played = Played(2)
    for _ in range(40):
        played.play(lambda name: name == "rollout-1")
    assert played.states() == ["healthy", "suspect"]
    played.go(11)
    assert played.states() == ["healthy", "healthy"] and played.fleet.room == 4 + 1
    played.fleet.given("rollout-1")
    played.fleet.played("rollout-1")
    assert played.fleet.room == 8


def test_a_push_does_not_let_a_suspect_off() -> None:
    played = Played(2)
    for _ in range(40):
        played.play(lambda name: name == "rollout-1")
    played.fleet.push(1)
    played.go(0.5)
    assert played.states() == ["healthy", "healthy"] and played.fleet.room == 4 + 1


def test_what_a_dead_process_played_is_taken_back_without_a_verdict() -> None:
    played = Played(1)
    for _ in range(4):
        played.fleet.given("rollout-0")
    played.fleet.lost("rollout-0", "gone")
    played.go(0.5)
    for _ in range(4):
        played.fleet.taken_back("rollout-0")
    assert played.fleet.room == 4 and not played.events("suspect")


def test_states_are_counted() -> None:
    played = Played(2)
    played.fleet.push(1)
    assert played.fleet.counts() == {"stale": 2}
    assert {State(name) for name in ("dead", "retired")} == {State.DEAD, State.RETIRED}
