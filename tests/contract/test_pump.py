"""The pump between driver, rollout workers and reward workers, with actors that do as they are told."""

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, ActorUnschedulableError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.rollout import Sampling
from pipelines.stage.faults import reason
from pipelines.stage.fleet import Member
from pipelines.stage.plays import Outcome, Play
from pipelines.stage.pump import PAUSES_S, Occupancy, RolloutPump
from vsr1.episode.environment import FinishedTurn
from vsr1.episode.sample import FailedSample, SampleId
from vsr1.ledger import Ledger
from vsr1.search.record import SearchTask, SearchTrajectory
from vsr1.settings.parts import AgentConfig

pytestmark = pytest.mark.usefixtures("ray_cluster")


@ray.remote(num_cpus=0)
class Part:
    """An actor that samples need; its process ends `times` times when it is asked.

    Args:
        ends: file that gets a byte at each end.
    """

    def __init__(self, ends: Path, times: int) -> None:
        self.ends, self.times = ends, times

    async def ask(self) -> None:
        size = self.ends.stat().st_size if self.ends.exists() else 0
        if size < self.times:
            with self.ends.open("ab") as file:
                file.write(b".")
            os._exit(1)


@ray.remote(num_cpus=0)
class Broken:
    def __init__(self) -> None:
        raise ValueError("the corpus has gone")

    async def ask(self) -> None: ...


@ray.remote(num_cpus=0)
class Rollout:
    """Plays for as many seconds as the query says, or until it has begun so many others (`after 10`).

    `fail`, `hang`, `die` and `ask` (a part) do that.
    """

    def __init__(self, part: Any = None) -> None:
        self.now = self.most = self.played = 0
        self.prompts: Counter[str] = Counter()
        self.part = part

    async def rollout(
        self, split: str, task: SearchTask, agent: AgentConfig, sampling: Sampling, finished: Sequence[FinishedTurn]
    ) -> AsyncIterator[SearchTrajectory]:
        self.now += 1
        self.played += 1
        self.prompts[task.id.prompt] += 1
        self.most = max(self.most, self.now)
        try:
            if task.query == "fail":
                raise ValueError("no such video")
            if task.query == "die":
                ray.actor.exit_actor()
            if task.query == "ask":
                await self.part.ask.remote()
                task = replace(task, query="0")
            if task.query.startswith("after "):
                while self.played <= int(task.query.removeprefix("after ")):
                    await asyncio.sleep(0.01)
            else:
                await asyncio.sleep(3600 if task.query == "hang" else float(task.query))
        finally:
            self.now -= 1
        yield SearchTrajectory(task)

    async def counts(self) -> tuple[int, int]:
        return self.most, self.played

    async def played_of(self) -> dict[str, int]:
        return self.prompts


@ray.remote(num_cpus=0)
class Rewards:
    def __init__(self) -> None:
        self.batches: list[int] = []

    def score(self, trajectories: list[SearchTrajectory]) -> list[Outcome]:
        self.batches.append(len(trajectories))
        time.sleep(0.02)
        return [FailedSample(t.id, "RewardError", "no reward") if t.id.sample == 13 else t for t in trajectories]

    def counts(self) -> list[int]:
        return self.batches


class Members:
    """A fixed fleet that starts a worker again when it has died."""

    def __init__(self, members: list[Member], at_once: int) -> None:
        self._members, self._at_once = members, at_once
        self._load: Counter[Member] = Counter()

    def pick(self) -> Member | None:
        member = min(self._members, key=lambda member: self._load[member])
        if self._load[member] >= self._at_once:
            return None
        self._load[member] += 1
        return member

    def played(self, member: Member, *, died: bool = False, failed: bool = False) -> None:
        self._load[member] -= 1
        if died and member in self._members:
            self._members[self._members.index(member)] = Member(member.name, Rollout.remote())

    def serving(self) -> list[str]:
        return [member.name for member in self._members]

    def tick(self) -> None:
        pass


def tasks(*queries: str) -> list[SearchTask]:
    return [SearchTask(SampleId(f"p{i}", i), "q", query) for i, query in enumerate(queries)]


@pytest.fixture
def parts() -> Iterator[tuple[list[Any], list[Any]]]:
    rollouts, rewards = [Rollout.remote() for _ in range(2)], [Rewards.remote()]
    ray.get([actor.counts.remote() for actor in [*rollouts, *rewards]])  # all have started
    yield rollouts, rewards
    for actor in [*rollouts, *rewards]:
        ray.kill(actor)


def play(
    parts: Any, queries: list[str], at_once: int = 4, deadline_s: float = 60.0
) -> tuple[list[Outcome], list[Occupancy]]:
    watched: list[Occupancy] = []
    rollouts, rewards = parts
    fleet = Members([Member(f"rollout worker {i}", worker) for i, worker in enumerate(rollouts)], at_once)
    pump = RolloutPump(fleet, rewards, deadline_s)
    outcomes = pump.play("train", tasks(*queries), AgentConfig(), Sampling(10), watched.append)
    return list(outcomes), watched


def test_every_task_leaves_once_and_no_worker_has_more_than_its_share(parts: Any) -> None:
    outcomes, watched = play(parts, ["0.05"] * 40)
    assert sorted(outcome.id.sample for outcome in outcomes) == list(range(40))
    counts = ray.get([worker.counts.remote() for worker in parts[0]])
    assert [most for most, _ in counts] == [4, 4]
    assert sum(played for _, played in counts) == 40
    assert max(now.episodes for now in watched) == 8
    assert watched[-1].finished == 40 == len(outcomes)


def test_a_slow_episode_does_not_hold_up_the_tasks_behind_it(parts: Any) -> None:
    """It ends once its worker has begun ten others."""
    outcomes, _ = play(parts, ["after 10", *["0.01"] * 60], at_once=2)
    assert len(outcomes) == 61
    assert [outcome.id.sample for outcome in outcomes if isinstance(outcome, FailedSample)] == [13]  # by its reward
    first, second = ray.get([worker.counts.remote() for worker in parts[0]])
    assert first[1] > 1 and second[1] > 1


def test_a_group_is_played_by_one_member(parts: Any) -> None:
    """All samples of it look at the same clips, which each engine would encode for itself."""
    rollouts, rewards = parts
    fleet = Members([Member(f"rollout worker {i}", worker) for i, worker in enumerate(rollouts)], at_once=8)
    pump = RolloutPump(fleet, rewards, deadline_s=60.0)
    groups = [SearchTask(SampleId(f"g{i // 4}", i % 4), "q", "0.05") for i in range(16)]
    assert len(list(pump.play("train", groups, AgentConfig(), Sampling(10), lambda now: None))) == 16
    assert [ray.get(worker.played_of.remote()) for worker in rollouts] == [{"g0": 4, "g2": 4}, {"g1": 4, "g3": 4}]


def test_who_has_room_takes_of_others_groups_when_nothing_else_waits() -> None:
    ledger = Ledger()
    waiting = Play("train", AgentConfig(), Sampling(10), ledger)
    for prompt in ("theirs", "new", "own"):
        ledger.issue(prompt, 2, 0)
        waiting.add(SearchTask(SampleId(prompt, 0), "q", "0"))
    waiting.add(SearchTask(SampleId("own", 1), "q", "0"), pause_s=3600.0)
    homes = {"theirs": "another", "own": "this"}
    taken = [waiting.take("this", homes, suspects=False).id.prompt for _ in range(3)]
    assert taken == ["new", "own", "theirs"]
    assert not any(waiting.due(suspects=False)) and waiting.waiting == 1


def test_what_finishes_together_is_scored_together_and_a_missing_reward_is_a_failure(parts: Any) -> None:
    outcomes, _ = play(parts, ["0.1"] * 24, at_once=12)
    batches = ray.get(parts[1][0].counts.remote())
    assert sum(batches) == 24 and len(batches) < 24
    [failure] = [outcome for outcome in outcomes if isinstance(outcome, FailedSample)]
    assert (failure.id.sample, failure.reason, failure.message) == (13, "RewardError", "no reward")


def test_a_failed_episode_is_named_and_the_others_go_on(parts: Any) -> None:
    outcomes, _ = play(parts, ["0.01", "fail", "0.01"])
    [failure] = [outcome for outcome in outcomes if isinstance(outcome, FailedSample)]
    assert (failure.id, failure.reason, failure.message) == (SampleId("p1", 1, 2), "ValueError", "no such video")
    assert len(outcomes) == 3


def test_an_episode_that_never_ends_fails_at_its_deadline_and_its_place_is_free_again(parts: Any) -> None:
    outcomes, _ = play(parts, ["hang", *["0.01"] * 6], at_once=1, deadline_s=3.0)
    [failure] = [outcome for outcome in outcomes if isinstance(outcome, FailedSample)]
    assert (failure.id.sample, failure.reason) == (0, "DeadlineError")
    assert "3 s (rollout.deadline_s) on rollout worker" in failure.message
    assert len(outcomes) == 7
    later, _ = play(parts, ["0.01"] * 4, at_once=1, deadline_s=3.0)
    assert not any(isinstance(outcome, FailedSample) for outcome in later)


def test_what_a_dead_worker_played_is_played_by_another(parts: Any) -> None:
    """Both samples that were there are lost with it; the one that ends it every time is poison in the end."""
    outcomes, _ = play(parts, ["0.01", "die", "0.3", "0.3"], at_once=4)
    [failure] = [outcome for outcome in outcomes if isinstance(outcome, FailedSample)]
    assert (failure.id.sample, failure.reason) == (1, "poison")
    assert "died while it played nothing else" in failure.message
    assert len(outcomes) == 4


def test_nothing_to_play_is_nothing(parts: Any) -> None:
    assert play(parts, []) == ([], [])


def asking(part: Any, reward_workers: int = 1) -> tuple[list[Any], list[Any]]:
    parts = [Rollout.remote(part)], [Rewards.remote() for _ in range(reward_workers)]
    ray.get([actor.counts.remote() for actor in [*parts[0], *parts[1]]])
    return parts


def test_a_part_that_ray_starts_again_is_waited_for(tmp_path: Path) -> None:
    part = Part.options(max_restarts=-1).remote(tmp_path / "ends", times=3)
    rollouts, rewards = asking(part)
    [outcome] = play((rollouts, rewards), ["ask"])[0]
    assert not isinstance(outcome, FailedSample) and (tmp_path / "ends").stat().st_size == 3
    assert ray.get(rollouts[0].counts.remote())[1] > 2  # more attempts than at a part that is gone


def test_a_part_that_will_not_come_back_ends_the_stage_with_its_name(tmp_path: Path) -> None:
    killed = Part.options(max_restarts=-1, name="retrieval-train").remote(tmp_path / "ends", times=0)
    ray.get(killed.ask.remote())
    ray.kill(killed)
    worn_out = Part.options(max_restarts=1, name="clips-train").remote(tmp_path / "worn", times=9)
    broken = Broken.options(max_restarts=-1).remote()
    for part, name in ((killed, "retrieval-train"), (worn_out, "clips-train"), (broken, "Broken")):
        parts = asking(part)
        with pytest.raises(ActorDiedError, match=name) as error:
            play(parts, ["ask"])
        assert (reason(error.value) or "").startswith(f"{name} died (process ")
        assert ray.get(parts[0][0].counts.remote())[1] <= 3  # not once for each of seven pauses


def test_a_part_whose_node_has_left_ends_the_stage(tmp_path: Path) -> None:
    there = NodeAffinitySchedulingStrategy("ab" * 28, soft=False)
    parts = asking(Part.options(max_restarts=-1, scheduling_strategy=there).remote(tmp_path / "ends", times=0))
    with pytest.raises(ActorUnschedulableError):
        play(parts, ["ask"])
    assert ray.get(parts[0][0].counts.remote())[1] == 2


def test_reward_workers_that_are_gone_are_left_out_and_the_last_one_ends_the_stage(parts: Any) -> None:
    rewards = [Rewards.options(name=f"reward-{i}").remote() for i in range(2)]
    ray.get([worker.counts.remote() for worker in rewards])
    ray.kill(rewards[0])
    outcomes, _ = play((parts[0], rewards), ["0.01"] * 8)
    assert len(outcomes) == 8 and sum(ray.get(rewards[1].counts.remote())) == 8
    ray.kill(rewards[1])
    began = time.monotonic()
    with pytest.raises(ActorDiedError, match="Rewards"):
        play((parts[0], rewards), ["0.01"])
    assert time.monotonic() - began < sum(PAUSES_S)
