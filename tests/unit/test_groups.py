"""The groups of a step: what is trained on, what is replaced, what is lost and when it is too much."""

from collections.abc import Iterator
from typing import Any

import pytest

from actors.rollout import Sampling
from pipelines.stage.pump import Outcome
from pipelines.stage.workers import RolloutError
from pipelines.train.groups import StepGroups, roll_out_groups
from pipelines.train.grpo import steps_of
from vsr1.config import Config
from vsr1.episode.sample import FailedSample, SampleId
from vsr1.episode.trajectory import Trajectory
from vsr1.rl.schedule import annealed
from vsr1.search.record import SearchTask
from vsr1.settings.parts import AgentConfig
from vsr1.settings.training import GrpoConfig

Outcomes = dict[str, list[float | str]]  # by query: a reward of each sample, or the reason why it failed
SIZE = 4


class World:
    """Plays and scores as the outcomes say."""

    def __init__(self, outcomes: Outcomes) -> None:
        self._outcomes = outcomes
        self.played: list[SearchTask] = []

    def play(self, split: str, tasks: list[SearchTask], agent: AgentConfig, sampling: Sampling) -> Iterator[Outcome]:
        assert (split, agent, sampling) == ("train", AgentConfig(), Sampling(10, 0.7, 0.25))
        for task in reversed(tasks):  # samples end in any order
            self.played.append(task)
            outcome = self._outcomes[task.query_id][task.id.sample]
            if isinstance(outcome, str):
                yield FailedSample(task.id, outcome, f"{outcome} happened")
            else:
                yield Trajectory(task, reward=outcome)


def stream(*queries: str) -> Iterator[SearchTask]:
    """Prompts of queries; the same query again is another prompt."""
    for place, query in enumerate(queries):
        yield SearchTask(SampleId(f"{place}/{query}"), query, f"text of {query}", "v", (0.0, 1.0), 2.0)


def config(prompts: int, **grpo: Any) -> Config:
    return Config.model_validate(
        {
            "seed": 7,
            "rollout": {"temperature": 0.7},
            "grpo": {
                "prompts_per_step": prompts,
                "group_size": SIZE,
                "latents": {"sigma": 0.25},
                "max_failed_fraction": 1.0,
                **grpo,
            },
        }
    )


def step_of(outcomes: Outcomes, prompts: int, queries: str | None = None, **grpo: Any) -> tuple[StepGroups, World]:
    """One step on prompts that come in that order, by default in that of `outcomes`."""
    world = World(outcomes)
    return roll_out_groups(world, stream(*(queries or outcomes)), config(prompts, **grpo), 1), world


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
        "failed_samples": 0,
    }


def test_each_trajectory_is_known_before_the_next_sample_is_played() -> None:
    """So that its clips can be fetched while others still run; a failed sample has none."""
    world, heard = World({"a": [1.0, "E", 3.0, 4.0]}), []
    roll_out_groups(world, stream("a"), config(1), 1, lambda one: heard.append((one.id.sample, len(world.played))))
    assert heard == [(3, 1), (2, 2), (0, 4)]


def test_failed_samples_are_counted_by_reason_and_never_trained_on() -> None:
    done, _ = step_of({"a": ["SearchTimeoutError", 1.0, "RewardError", 2.0], "b": [1.0, 2.0, 3.0, "RewardError"]}, 2)
    assert trained(done) == [("a", 1), ("a", 3), ("b", 0), ("b", 1), ("b", 2)]
    assert done.metrics() == {
        "groups/prompts": 2,
        "groups/without_variance": 0,
        "groups/lost": 0,
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
    assert sorted(trained(done)) == all_of("c", "e", "f")
    assert (done.equal_groups, done.prompts, done.lost_groups) == (4, 6, 0)
    assert {task.query_id for task in world.played} == set("abcdef")


def test_of_more_equal_groups_than_may_be_replaced_the_rest_stays() -> None:
    done, _ = step_of({"a": EQUAL, "b": EQUAL, "c": EQUAL, "d": GOOD}, 3, replace_equal_groups=1)
    assert sorted(trained(done)) == all_of("b", "c", "d")
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


def test_steps_end_by_their_number_or_by_time() -> None:
    assert list(steps_of(GrpoConfig(steps=4))) == [(1, 0), (2, 0.25), (3, 0.5), (4, 0.75)]
    assert [step for step, _ in steps_of(GrpoConfig(steps=3, limit_s=1e-9))] == [1]
    assert [step for step, _ in steps_of(GrpoConfig(steps=3, limit_s=100))] == [1, 2, 3]


def test_the_learning_rate_falls_to_nothing_in_the_second_half() -> None:
    assert [annealed(done) for done in (0, 0.5, 0.75, 1)] == [1, 1, 0.5, 0]


def test_a_run_that_ends_by_time_is_over_by_the_share_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 10.0, 12.0, 19.0, 20.5])
    monkeypatch.setattr("pipelines.train.grpo.time.monotonic", lambda: next(clock))
    assert list(steps_of(GrpoConfig(steps=1000, limit_s=10))) == [(1, 0), (2, 0.2), (3, 0.9)]
