"""The ledger: no sample is trained twice or vanishes, wherever between two moves its driver is killed."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vsr1.episode.environment import FinishedTurn
from vsr1.episode.sample import SampleId
from vsr1.ledger import MOVES, Frame, Ledger, LedgerError, Past, State

SIZE, TURNS = 2, 2


class DriverKilledError(Exception):
    """The driver, at a frame."""


def finished(number: int, version: int = 0) -> FinishedTurn:
    latents = np.full((1, 2), number, np.float32)
    return FinishedTurn([1], [2, number], [-0.5, -0.25], "reply", "refined", latents, latents, 7, version, [], "i1")


def reach(ledger: Ledger, sample: SampleId, state: State) -> None:
    """Bring a new sample into a state, by the shortest way."""
    for move, name in ((lambda: ledger.start(sample, "m"), "running"), (lambda: ledger.finish(sample), "finished"),
                       (lambda: ledger.reward(sample), "rewarded")):  # fmt: skip
        if ledger[sample].state == state:
            return
        move()
        assert ledger[sample].state == name


@pytest.mark.parametrize("state", list(MOVES))
def test_a_move_that_is_not_drawn_raises_and_changes_nothing(state: State) -> None:
    moves: dict[State, Callable[[Ledger, SampleId], None]] = {
        "issued": lambda ledger, sample: ledger.lose([sample]),
        "running": lambda ledger, sample: ledger.start(sample, "m"),
        "finished": lambda ledger, sample: ledger.finish(sample),
        "rewarded": lambda ledger, sample: ledger.reward(sample),
        "trained": lambda ledger, sample: ledger.train([sample], 1),
        "dropped": lambda ledger, sample: ledger.drop(sample, "equal"),
    }
    for target, move in moves.items():
        frames: list[Frame] = []
        ledger = Ledger(frames.append)
        sample = ledger.issue("p", 1, 0)[0].id
        reach(ledger, sample, state)
        count = len(frames)
        if target in MOVES[state]:
            move(ledger, sample)
            assert len(frames) > count
        else:
            with pytest.raises(LedgerError, match=f"is {state} and cannot become {target}"):
                move(ledger, sample)
            assert len(frames) == count and ledger[sample].state == state


def test_a_closed_sample_takes_no_further_move_and_its_prompt_is_not_issued_again() -> None:
    ledger = Ledger()
    [entry] = ledger.issue("p", 1, 0)
    reach(ledger, entry.id, "rewarded")
    ledger.train([entry.id], 3)
    assert (ledger.open, ledger.closed) == ([], Counter(trained=1))
    with pytest.raises(LedgerError, match="not open"):
        ledger.train([entry.id], 4)
    with pytest.raises(LedgerError, match="issued already"):
        ledger.issue("p", 1, 0)


def test_a_lost_sample_keeps_its_turns_and_counts_the_attempt() -> None:
    ledger = Ledger()
    [entry] = ledger.issue("p", 1, 0)
    ledger.start(entry.id, "m")
    ledger.add_turn(entry.id, 1, finished(1))
    with pytest.raises(LedgerError, match="has 1 turns, so none of 3"):
        ledger.add_turn(entry.id, 3, finished(3))
    ledger.lose([entry.id])
    assert (entry.state, entry.id, len(entry.turns)) == ("issued", SampleId("p", 0, 1), 1)
    ledger.start(entry.id, "other")
    ledger.add_turn(entry.id, 1, finished(9))  # played again: the first one stays
    assert entry.turns[0].token_ids == [2, 1]
    ledger.lose([entry.id])
    ledger.cut(entry.id)
    assert entry.turns == []


def test_a_prompt_that_kills_workers_is_played_alone_and_then_poison() -> None:
    ledger = Ledger(kills=3)
    samples = [entry.id for prompt in "ab" for entry in ledger.issue(prompt, 2, 0)]
    for death, suspect in enumerate((False, True, True), start=1):
        lost = samples if death < 3 else samples[:1]  # two deaths hit all of them, the third one only
        for sample in lost:
            ledger.start(sample, "m")
        assert ("a" in ledger.suspects) == (death > 2)
        ledger.lose(lost, killed=True)  # one death counts once for each prompt
        assert ("a" in ledger.suspects) == suspect
    assert ledger.is_poison("a") and not ledger.is_poison("b") and "b" in ledger.suspects


def _die(ledger: Ledger, samples: list[SampleId]) -> None:
    for sample in samples:
        ledger.start(sample, "m")
    ledger.lose(samples, killed=True)


def _end(ledger: Ledger, samples: list[SampleId]) -> None:
    for sample in samples:
        ledger.start(sample, "other")
        ledger.finish(sample)


def test_a_prompt_whose_lost_samples_end_elsewhere_is_cleared_of_the_death() -> None:
    frames: list[Frame] = []
    ledger = Ledger(frames.append, kills=3)
    a, b, c = ([entry.id for entry in ledger.issue(prompt, 4, 0)] for prompt in "abc")
    _die(ledger, [*a[:2], *b[:2], *c[:1]])
    _end(ledger, [*a[:2], b[0]])  # b's other one is still open, and c's
    _die(ledger, [a[2], b[2]])
    assert ledger.suspects == {"b"}  # at both deaths, and the first one may have been its own
    _end(ledger, b[1:3])
    assert ledger.suspects == set() and not ledger.is_poison("b")
    assert Past.read(frames).kills == Counter(a=1, c=1)


def test_what_kills_every_time_is_poison_whatever_its_other_samples_do() -> None:
    ledger = Ledger(kills=3)
    samples = [entry.id for entry in ledger.issue("a", 4, 0)]
    _die(ledger, samples)
    _end(ledger, samples[1:])
    _die(ledger, samples[:1])
    assert ledger.suspects == {"a"}
    _die(ledger, samples[:1])
    assert ledger.is_poison("a")


def test_a_suspect_of_a_run_before_is_cleared_when_all_its_samples_have_ended() -> None:
    frames: list[Frame] = []
    first = Ledger(frames.append, kills=2)
    _die(first, [entry.id for entry in first.issue("p", 2, 0)][:1])
    second = Ledger(frames.append, Past.read(frames), kills=2)
    samples = [entry.id for entry in second.issue("p", 2, 0)]
    _end(second, samples[:1])
    assert second.suspects == {"p"}
    _end(second, samples[1:])
    assert second.suspects == set() and not Past.read(frames).kills


def test_the_run_that_goes_on_knows_kills_failures_and_turns() -> None:
    frames: list[Frame] = []
    first = Ledger(frames.append, kills=2)
    one, two = (entry.id for entry in first.issue("p", 2, 4))
    first.start(one, "m")
    first.add_turn(one, 1, finished(1, version=4))
    first.start(two, "m")
    first.drop(two, "DeadlineError", "too long")
    first.lose([one], killed=True)
    second = Ledger(past=Past.read(frames), kills=2)
    again, failed = second.issue("p", 2, 4)
    assert (again.id.attempt, [turn.token_ids for turn in again.turns]) == (1, [[2, 1]])
    assert second.failure_of(again.id) is None
    assert second.failure_of(failed.id) == ("DeadlineError", "too long")
    assert "p" in second.suspects


def test_what_was_dropped_for_the_sake_of_others_is_decided_anew() -> None:
    frames: list[Frame] = []
    first = Ledger(frames.append)
    for entry, reason in zip(first.issue("p", 3, 0), ("equal", "stale", "lost group"), strict=True):
        first.drop(entry.id, reason)
    second = Ledger(past=Past.read(frames))
    assert [second.failure_of(entry.id) for entry in second.issue("p", 3, 0)] == [None] * 3


@pytest.mark.parametrize(("version", "left"), [(3, 0), (4, 1), (5, 2), (9, 2)])
def test_turns_of_weights_that_are_not_there_any_more_are_played_again(version: int, left: int) -> None:
    """Two turns of versions 4 and 5; the run goes on from the weights of an earlier step."""
    frames: list[Frame] = []
    first = Ledger(frames.append)
    [entry] = first.issue("p", 1, 4)
    snapshot = first.snapshot()
    first.start(entry.id, "m")
    first.add_turn(entry.id, 1, finished(1, version=4))
    first.add_turn(entry.id, 2, finished(2, version=5))
    past = [*snapshot, *frames[1:]]
    second = Ledger(frames.append, Past.read(past))
    [again] = second.issue("p", 1, version)
    assert (len(again.turns), again.step) == (left, 4)
    third = Past.read([*past, *frames[len(past) :]])
    assert len(third.samples["p", 0].turns) == left  # the frame of the cut says the same to the next one


class Driver:
    """Trains prompts in order, one a step, through a ledger; saves every second step. What a driver does, in small."""

    def __init__(self, prompts: int) -> None:
        self.saved: tuple[list[Frame], int, int, list[Any]] = ([], 0, 0, [])  # snapshot, position, step, trained
        self.frames: list[Frame] = []  # since then
        self.countdown = -1
        self._prompts = prompts

    def write(self, frame: Frame) -> None:
        self.countdown -= 1
        if self.countdown == 0:
            raise DriverKilledError
        self.frames.append(frame)

    def run(self, kill_at: int, order: list[int]) -> bool:
        """Go on from what is saved; return whether all steps were taken. `order`: in which samples do what they do."""
        snapshot, position, step, trained = self.saved
        past = Past.read([*snapshot, *self.frames])
        self.countdown = kill_at
        trained = list(trained)
        try:
            ledger = Ledger(self.write, past)
            waiting = list(past.open)
            while step < self._prompts:
                while len(waiting) < 2 and position < self._prompts:  # one is given out ahead
                    waiting.append(f"p{position}")
                    position += 1
                for prompt in waiting:
                    if not any(entry.id.prompt == prompt for entry in ledger.open):
                        ledger.issue(prompt, SIZE, step)
                prompt = waiting.pop(0)
                for sample in order:
                    self._play(ledger, prompt, sample)
                ledger.train([SampleId(prompt, sample) for sample in range(SIZE)], step + 1)
                step += 1
                trained += [(prompt, sample) for sample in range(SIZE)]
                if step % 2 == 0:
                    self.saved = (ledger.snapshot(), position, step, list(trained))
                    self.frames = []
            assert ledger.closed == Counter(trained=SIZE * self._prompts)
            self.saved = (ledger.snapshot(), position, step, trained)
        except DriverKilledError:
            return False
        return True

    def _play(self, ledger: Ledger, prompt: str, sample: int) -> None:
        entry = ledger[SampleId(prompt, sample)]
        ledger.start(entry.id, "m")
        for number in range(1, TURNS + 1):
            ledger.add_turn(entry.id, number, finished(number, entry.step))
        ledger.finish(entry.id)
        ledger.reward(entry.id)


def test_turns_of_a_prompt_after_the_snapshot_stay_if_they_are_of_the_present_weights() -> None:
    frames: list[Frame] = []
    first = Ledger(frames.append)
    [entry] = first.issue("p", 1, 4)
    first.start(entry.id, "m")
    first.add_turn(entry.id, 1, finished(1, version=4))
    for weights, left in ((3, 0), (4, 1), (5, 0)):
        [again] = Ledger(past=Past.read(frames)).issue("p", 1, 6, weights)
        assert (len(again.turns), again.step) == (left, 6)


def test_a_kill_at_every_frame_leaves_what_a_whole_run_trains() -> None:
    """All kill points of a run of six steps, and of the run that goes on from it."""
    whole = Driver(6)
    assert whole.run(-1, [0, 1])
    expected = sorted(whole.saved[3])
    assert len(set(expected)) == len(expected) == 6 * SIZE
    kill_at, kills = 1, 0
    while True:
        driver = Driver(6)
        if driver.run(kill_at, [0, 1]):
            break
        kills += 1
        if not driver.run(kill_at, [1, 0]):
            kills += 1
            assert driver.run(-1, [0, 1])
        assert sorted(driver.saved[3]) == expected, kill_at
        kill_at += 1
    assert kills > 100


class Ledgers(RuleBasedStateMachine):
    """Any order of moves, kills and saves; what is true is counted beside the ledger."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: list[Frame] = []
        self.saved: tuple[list[Frame], int, Counter[str], set[Any]] = ([], 0, Counter(), set())
        self.ledger = Ledger(self.frames.append)
        self.position = self.version = 0
        self.closed: Counter[str] = Counter()
        self.trained: set[Any] = set()

    def _in(self, *states: State) -> Iterator[SampleId]:
        return (entry.id for entry in self.ledger.open if entry.state in states)

    def _one(self, data: st.DataObject, *states: State) -> SampleId | None:
        samples = list(self._in(*states))
        return data.draw(st.sampled_from(samples)) if samples else None

    @rule()
    def issue(self) -> None:
        for entry in self.ledger.issue(f"p{self.position}", SIZE, self.version):
            if failure := self.ledger.failure_of(entry.id):
                self.ledger.drop(entry.id, *failure)
                self.closed[failure[0]] += 1
        self.position += 1

    @rule(data=st.data())
    def play(self, data: st.DataObject) -> None:
        if sample := self._one(data, "issued"):
            self.ledger.start(sample, "m")

    @rule(data=st.data())
    def turn(self, data: st.DataObject) -> None:
        if sample := self._one(data, "running"):
            count = len(self.ledger[sample].turns)
            self.ledger.add_turn(sample, count + 1, finished(count + 1, self.version))

    @rule(data=st.data(), killed=st.booleans())
    def lose(self, data: st.DataObject, killed: bool) -> None:
        if sample := self._one(data, "running"):
            self.ledger.lose([sample], killed=killed)

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        if sample := self._one(data, "running"):
            self.ledger.finish(sample)
            self.ledger.reward(sample)

    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        if sample := self._one(data, "running", "issued"):
            self.ledger.drop(sample, "DeadlineError")
            self.closed["DeadlineError"] += 1

    @rule(data=st.data(), reason=st.sampled_from([None, "equal"]))
    def close_a_group(self, data: st.DataObject, reason: str | None) -> None:
        waiting = {sample.prompt for sample in self._in("issued", "running", "finished")}
        samples = list(self._in("rewarded"))
        groups = sorted({sample.prompt for sample in samples} - waiting)
        if not groups:
            return
        prompt = data.draw(st.sampled_from(groups))
        group = [sample for sample in samples if sample.prompt == prompt]
        self.closed[reason or "trained"] += len(group)
        if reason:
            for sample in group:
                self.ledger.drop(sample, reason)
            return
        self.version += 1
        self.ledger.train(group, self.version)
        keys = {(sample.prompt, sample.sample) for sample in group}
        assert not keys & self.trained
        self.trained |= keys

    @rule()
    def save(self) -> None:
        self.saved = (self.ledger.snapshot(), self.position, Counter(self.closed), set(self.trained))
        self.frames.clear()
        self.saved_version = self.version

    @precondition(lambda self: self.saved[0])
    @rule()
    def go_on_from_the_save(self) -> None:
        snapshot, self.position, closed, trained = self.saved
        self.trained = set(trained)
        past = Past.read([*snapshot, *self.frames])
        self.version = self.saved_version
        self.ledger = Ledger(self.frames.append, past)
        self.closed = Counter(self.ledger.closed)
        for prompt, (size, _) in list(past.open.items()):
            for entry in self.ledger.issue(prompt, size, self.version):
                assert all(turn.weight_version <= self.version for turn in entry.turns)
                assert (entry.id.prompt, entry.id.sample) not in self.trained
                if failure := self.ledger.failure_of(entry.id):
                    self.ledger.drop(entry.id, *failure)
                    self.closed[failure[0]] += 1
        assert closed - self.closed == Counter()  # what was closed is; more of an open prompt may have failed since

    @invariant()
    def every_sample_is_open_trained_or_dropped(self) -> None:
        assert self.ledger.closed == self.closed
        assert len(self.ledger.open) + self.closed.total() == SIZE * self.position
        assert self.closed["trained"] == len(self.trained)


Ledgers.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLedgers = Ledgers.TestCase
