"""The groups of a step: what is trained on, what is replaced, what is lost and when it is too much."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.stage.plays import Outcome
from pipelines.stage.workers import RolloutError
from pipelines.train.groups import GroupWindow, StepGroups
from pipelines.train.grpo import steps_of
from vsr1.episode.sample import FailedSample, SampleId
from vsr1.episode.trajectory import Trajectory
from vsr1.rl.schedule import annealed
from vsr1.search.record import SearchTask
from vsr1.settings.training import GrpoConfig

Outcomes = dict[str, list[float | str]]  # by query: a reward of each sample, or the reason why it failed
SIZE = 4


class World:
    """Plays and scores as the outcomes say."""

    def __init__(self, outcomes: Outcomes) -> None:
        self._outcomes = outcomes
        self.played: list[SearchTask] = []

    def play(self, prompt: SearchTask) -> Iterator[Outcome]:
        for task in reversed([replace(prompt, id=SampleId(prompt.id.prompt, sample)) for sample in range(SIZE)]):
            self.played.append(task)  # samples end in any order
            outcome = self._outcomes[task.query_id][task.id.sample]
            if isinstance(outcome, str):
                yield FailedSample(task.id, outcome, f"{outcome} happened")
            else:
                yield Trajectory(task, reward=outcome)


def stream(*queries: str) -> Iterator[SearchTask]:
    """Prompts of queries; the same query again is another prompt."""
    for place, query in enumerate(queries):
        yield SearchTask(SampleId(f"{place}/{query}"), query, f"text of {query}", "v", (0.0, 1.0), 2.0)


def settings(prompts: int, **grpo: Any) -> GrpoConfig:
    return GrpoConfig.model_validate(
        {
            "prompts_per_step": prompts,
            "group_size": SIZE,
            "max_failed_fraction": 1.0,
            "learner": {"ranks": 1},
            **grpo,
        }
    )


def step_of(outcomes: Outcomes, prompts: int, queries: str | None = None, **grpo: Any) -> tuple[StepGroups, World]:
    """One step on prompts that come in that order, by default in that of `outcomes`."""
    world, prompts_of = World(outcomes), stream(*(queries or outcomes))
    window = GroupWindow(settings(prompts, **grpo), lambda group, reason: None)
    while (groups := window.take(1)) is None:
        given_out = [next(prompts_of) for _ in range(window.room)]
        for prompt in given_out:
            window.issue(prompt, 0)
        for prompt in reversed(given_out):  # and so do groups
            for outcome in world.play(prompt):
                window.add(outcome)
    return groups, world


def trained(done: StepGroups) -> list[tuple[str, int]]:
    return [(trajectory.task.query_id, trajectory.id.sample) for trajectory in done.trained]


def all_of(*queries: str) -> list[tuple[str, int]]:
    return [(query, sample) for query in queries for sample in range(SIZE)]


GOOD: list[float | str] = [1.0, 2.0, 3.0, 4.0]
EQUAL: list[float | str] = [0.5] * SIZE


def test_whole_groups_are_trained_on_in_order() -> None:
    done, world = step_of({"a": GOOD, "b": GOOD}, 2)
    assert trained(done) == all_of("a", "b")
    assert len({task.id.seed(7, 1) for task in world.played}) == 2 * SIZE
    assert done.metrics() == {
        "groups/prompts": 2,
        "groups/without_variance": 0,
        "groups/lost": 0,
        "groups/stale": 0,
        "failed_samples": 0,
    }


def test_failed_samples_are_counted_by_reason_and_never_trained_on() -> None:
    done, _ = step_of({"a": ["SearchTimeoutError", 1.0, "RewardError", 2.0], "b": [1.0, 2.0, 3.0, "RewardError"]}, 2)
    assert trained(done) == [("a", 1), ("a", 3), ("b", 0), ("b", 1), ("b", 2)]
    assert done.metrics() == {
        "groups/prompts": 2,
        "groups/without_variance": 0,
        "groups/lost": 0,
        "groups/stale": 0,
        "failed_samples": 3,
        "failed_samples/SearchTimeoutError": 1,
        "failed_samples/RewardError": 2,
    }


def test_a_group_left_with_one_sample_goes() -> None:
    done, _ = step_of({"a": ["E", "E", "E", 1.0], "b": GOOD}, 2)
    assert trained(done) == all_of("b")
    assert (done.lost_groups, done.equal_groups, done.failures["E"]) == (1, 0, 3)


def test_a_group_where_all_failed_is_lost() -> None:
    done, _ = step_of({"a": ["E"] * SIZE, "b": GOOD, "c": ["RewardError"] * SIZE}, 3)
    assert trained(done) == all_of("b")
    assert (done.lost_groups, done.prompts) == (2, 3)


def test_a_prompt_that_comes_twice_in_a_step_loses_nothing() -> None:
    """With fewer prompts than a step takes, an epoch ends within it; each issue of the query is a group of its own."""
    done, world = step_of({"a": GOOD, "b": GOOD}, 3, "aba")
    assert (done.lost_groups, done.prompts, trained(done)) == (0, 3, all_of("a", "b", "a"))
    assert len({task.id for task in world.played}) == 3 * SIZE
    assert len({task.id.seed(7, 1) for task in world.played}) == 3 * SIZE
    done, _ = step_of({"a": ["E"] * SIZE, "b": GOOD}, 3, "aba")
    assert (done.lost_groups, trained(done)) == (2, all_of("b"))


def test_equal_groups_stay_where_none_is_to_be_replaced() -> None:
    done, world = step_of({"a": EQUAL, "b": GOOD, "c": GOOD}, 2)
    assert trained(done) == all_of("a", "b")
    assert (done.equal_groups, done.prompts, len(world.played)) == (1, 2, 2 * SIZE)


def test_equal_groups_are_replaced_up_to_a_number_a_step() -> None:
    """Round one plays a, b, c; a and b are replaced by d and e, d by f; f is equal too, but the three are used up."""
    outcomes = {"a": EQUAL, "b": EQUAL, "c": GOOD, "d": EQUAL, "e": GOOD, "f": EQUAL, "g": GOOD}
    done, world = step_of(outcomes, 3, replace_equal_groups=3)
    assert trained(done) == all_of("c", "e", "f")
    assert (done.equal_groups, done.prompts, done.lost_groups) == (4, 6, 0)
    assert {task.query_id for task in world.played} == set("abcdef")


def test_of_more_equal_groups_than_may_be_replaced_the_rest_stays() -> None:
    done, _ = step_of({"a": EQUAL, "b": EQUAL, "c": EQUAL, "d": GOOD}, 3, replace_equal_groups=1)
    assert trained(done) == all_of("b", "c", "d")
    assert (done.equal_groups, done.prompts) == (3, 4)


def test_lost_groups_are_not_replaced() -> None:
    done, _ = step_of({"a": ["E"] * SIZE, "b": GOOD, "c": GOOD}, 2, replace_equal_groups=5)
    assert trained(done) == all_of("b")
    assert done.prompts == 2


def test_more_failures_than_tolerated_stop_the_step_and_the_first_is_named() -> None:
    outcomes: Outcomes = {"a": ["RewardError", 1.0, 2.0, 3.0], "b": [1.0, 2.0, "SearchTimeoutError", 3.0]}
    step_of(outcomes, 2, max_failed_fraction=0.25)
    with pytest.raises(RolloutError, match=r"2 of 8 samples failed; the first, .*'1/b', sample=2.*: SearchTimeoutE"):
        step_of(outcomes, 2, max_failed_fraction=0.2)


def test_the_tolerated_share_is_of_the_whole_step() -> None:
    """One of the four samples of the replacing group fails: a quarter of that round, a twelfth of the step."""
    outcomes: Outcomes = {"a": EQUAL, "b": GOOD, "c": [1.0, "E", 2.0, 3.0]}
    done, _ = step_of(outcomes, 2, replace_equal_groups=1, max_failed_fraction=0.1)
    assert trained(done) == [*all_of("b"), ("c", 0), ("c", 2), ("c", 3)]
    assert done.failures == {"E": 1}
    with pytest.raises(RolloutError, match="1 of 12 samples failed"):
        step_of(outcomes, 2, replace_equal_groups=1, max_failed_fraction=0.05)


def test_nothing_left_to_train_on_is_an_error() -> None:
    with pytest.raises(RolloutError, match=r"step 1: no group is left to train on; samples failed with \{'E': 7\}"):
        step_of({"a": ["E", "E", "E", 1.0], "b": ["E"] * SIZE}, 2)


class Ahead:
    """A window with one sample to complete a group of two, the other being there; names of prompts are letters."""

    def __init__(self, **grpo: Any) -> None:
        self.drops: list[tuple[str, str]] = []
        self.window = GroupWindow(
            settings(2, group_size=2, **grpo),
            lambda group, reason: self.drops.append((group.prompt.query_id, reason)),
        )
        self._given = stream(*"abcdefghijklmnopqrstuvwxyz")
        self._prompts: dict[str, SearchTask] = {}

    def issue(self, step: int) -> str:
        names = ""
        while self.window.room:
            prompt = next(self._given)
            self._prompts[prompt.query_id] = prompt
            self.window.issue(prompt, step)
            names += prompt.query_id
        return names

    def end(self, names: str, *rewards: float) -> None:
        for name in names:
            for sample, reward in enumerate(rewards or (0.0, 1.0)):
                task = replace(self._prompts[name], id=SampleId(self._prompts[name].id.prompt, sample))
                self.window.add(Trajectory(task, reward=reward))

    def take(self, step: int) -> str | None:
        groups = self.window.take(step)
        return None if groups is None else "".join(dict.fromkeys(query for query, _ in trained(groups)))


def test_prompts_are_given_out_up_to_the_bound_and_learning_makes_room() -> None:
    ahead = Ahead(staleness=1)
    assert (ahead.issue(0), ahead.window.room) == ("abcd", 0)
    ahead.end("cb")
    assert (ahead.take(1), ahead.window.room) == ("bc", 0)  # those that are complete, in the order of their issue
    ahead.window.learned()
    assert ahead.issue(1) == "ef"


def test_a_step_waits_for_what_the_next_one_could_not_learn_in_time() -> None:
    """The example of the module: c is late."""
    ahead = Ahead(staleness=2)
    assert ahead.issue(0) == "abcdef"
    ahead.end("abdef")
    for step, names in ((1, "ab"), (2, "de")):
        assert ahead.take(step) == names
        ahead.window.learned()
        ahead.end(ahead.issue(step))
    assert ahead.take(3) is None
    ahead.end("c")
    assert ahead.take(3) == "cf"
    assert ahead.drops == []


def test_or_it_drops_it_and_another_prompt_is_given_out() -> None:
    ahead = Ahead(staleness=2, late="drop")
    ahead.issue(0)
    ahead.end("abdef")
    for step, names in ((1, "ab"), (2, "de")):
        assert ahead.take(step) == names
        ahead.window.learned()
        ahead.end(ahead.issue(step))
    groups = ahead.window.take(3)
    assert groups is not None and {query for query, _ in trained(groups)} == {"f", "g"}
    assert (ahead.drops, groups.stale_groups) == ([("c", "stale")], 1)
    assert ahead.window.room == 1


def test_no_more_prompts_are_given_out_than_the_last_steps_take() -> None:
    ahead = Ahead(staleness=3, steps=3)
    assert ahead.issue(0) == "abcdef"
    ahead.end("abcdef")
    for step, names in ((1, "ab"), (2, "cd"), (3, "ef")):
        assert ahead.take(step) == names
        ahead.window.learned()
        assert ahead.issue(step) == ""


def test_ahead_of_the_learner_equal_groups_are_replaced_as_they_come() -> None:
    ahead = Ahead(staleness=1, replace_equal_groups=1)
    ahead.issue(0)
    ahead.end("db", 1.0, 1.0)
    assert (ahead.drops, ahead.issue(0)) == ([("d", "equal")], "e")
    ahead.end("a")
    assert ahead.take(1) == "ab"


@given(st.data(), st.integers(0, 3), st.integers(1, 3))
def test_waiting_never_stops_for_good_and_nothing_is_older_than_the_bound(
    data: st.DataObject, staleness: int, prompts: int
) -> None:
    """Groups end in any order; whatever is complete when all have ended is enough for the next step."""
    window = GroupWindow(settings(prompts, group_size=2, staleness=staleness, steps=8), lambda group, reason: None)
    given_out, issued, running = stream(*map(str, range(1000))), {}, []
    for step in range(1, 9):
        while window.room:
            prompt = next(given_out)
            window.issue(prompt, step - 1)
            issued[prompt.id.prompt] = step - 1
            running.append(prompt)
        while (groups := window.take(step)) is None:
            prompt = running.pop(data.draw(st.integers(0, len(running) - 1)))
            for sample in range(2):
                task = replace(prompt, id=SampleId(prompt.id.prompt, sample))
                window.add(Trajectory(task, reward=float(sample)))
        assert len(groups.trained) == 2 * prompts
        assert all(step - 1 - issued[trajectory.id.prompt] <= staleness for trajectory in groups.trained)
        window.learned()
    assert not running and len(issued) == 8 * prompts


def test_steps_end_by_their_number_or_by_time() -> None:
    assert list(steps_of(GrpoConfig(steps=4))) == [(1, 0), (2, 0.25), (3, 0.5), (4, 0.75)]
    assert [step for step, _ in steps_of(GrpoConfig(steps=3, limit_s=1e-9))] == [1]
    assert [step for step, _ in steps_of(GrpoConfig(steps=3, limit_s=100))] == [1, 2, 3]
    assert list(steps_of(GrpoConfig(steps=4), taken=2)) == [(3, 0.5), (4, 0.75)]  # of a run that goes on
    assert list(steps_of(GrpoConfig(steps=4, limit_s=100), taken=2, elapsed_s=101)) == []


def test_the_learning_rate_falls_to_nothing_in_the_second_half() -> None:
    assert [annealed(done) for done in (0, 0.5, 0.75, 1)] == [1, 1, 0.5, 0]


def test_a_run_that_ends_by_time_is_over_by_the_share_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 10.0, 12.0, 19.0, 20.5])
    monkeypatch.setattr("pipelines.train.grpo.time.monotonic", lambda: next(clock))
    assert list(steps_of(GrpoConfig(steps=1000, limit_s=10))) == [(1, 0), (2, 0.2), (3, 0.9)]
