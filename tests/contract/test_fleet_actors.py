"""The fleet with actors and processes: a scripted engine in a process of its own, killed and stopped in every way."""

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cloudpickle import register_pickle_by_value

from actors.clips import ClipStores
from actors.rollout import Sampling
from pipelines.stage.fleet import Member, RolloutFleet
from pipelines.stage.pump import Outcome, RolloutPump
from pipelines.stage.watch import Watch
from vsr1.config import Config
from vsr1.episode.sample import FailedSample, SampleId
from vsr1.fleet import FleetError
from vsr1.runs.events import WriteEvent, write_nothing
from vsr1.runs.scale import write_scale
from vsr1.search.record import SearchTask
from vsr1.settings.parts import AgentConfig

from . import scripted_worker
from .scripted_worker import ScriptedWorker, gone

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(120)]
register_pickle_by_value(sys.modules[__name__])  # actors cannot import this file
register_pickle_by_value(scripted_worker)
chaos = pytest.mark.chaos
NO_PROBE = {"probe_every_s": 600.0}  # so that a fault can only be found by the watch, or by the end of a process


@ray.remote(num_cpus=0)
class Rewards:
    def score(self, trajectories: list) -> list:
        return trajectories


class Learners:
    """What a push asks of a `LearnerGroup`."""

    ranks, starts = 1, 1

    def weights(self) -> ray.ObjectRef:
        return ray.put((b"safetensors", {}))


class Stage:
    """A fleet with its watch, its pump and what they tell."""

    def __init__(
        self,
        folder: Path,
        make: Callable[[str], Any],
        workers: int,
        stores: ClipStores | None = None,
        write: WriteEvent = write_nothing,
        **settings: Any,
    ) -> None:
        self._write = write
        self.config = Config(run_dir=folder, rollout={"workers": workers, "max_episodes": 4}, fleet=settings)
        self.events: list[dict[str, Any]] = []
        self.watch = Watch(self.config.fleet, write=self.write)

        def clips(node: str) -> dict[str, Any]:
            return {"train": stores.on(node)} if stores else {}

        def vacate(node: str) -> None:
            if stores:
                stores.end(node)
            self.watch.leave(node)

        self.fleet = RolloutFleet(self.config, make, clips, self.watch, self.write, vacate)
        self.fleet.start()
        self.rewards = [Rewards.remote()]

    def write(self, kind: str, **fields: Any) -> None:
        self.events.append({"kind": kind, "time": time.monotonic(), **fields})
        self._write(kind, **fields)

    def told(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["kind"] == kind]

    def play(self, *queries: str, deadline_s: float = 60.0) -> list[Outcome]:
        pump = RolloutPump(self.fleet, self.rewards, deadline_s)
        tasks = [SearchTask(SampleId("p", sample), "q", query) for sample, query in enumerate(queries)]
        return list(pump.play("train", tasks, AgentConfig(), Sampling(10), lambda now: None))

    def until(self, condition: Callable[[], bool], limit_s: float = 60.0) -> None:
        """Tick until the condition holds."""
        began = time.monotonic()
        while not condition():
            assert time.monotonic() - began < limit_s, (self.fleet.counts(), self.events)
            self.fleet.tick()
            time.sleep(0.05)

    def processes(self, name: str) -> tuple[int, int]:
        [member] = [member for member in self.fleet.members if member.name == name]
        return ray.get(member.handle.processes.remote())

    def stop(self) -> None:
        self.fleet.stop()
        self.watch.stop()


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Callable[..., Stage]]:
    stages: list[Stage] = []

    def start(workers: int = 2, make: Callable[[str], Any] = lambda name: ScriptedWorker.remote(), **settings) -> Stage:
        stages.append(Stage(tmp_path, make, workers, **settings))
        return stages[-1]

    yield start
    for one in stages:
        one.stop()


def test_samples_are_played_by_all_and_engines_end_with_their_workers(stage) -> None:
    running = stage(2)
    outcomes = running.play(*["0.1"] * 12)
    assert sorted(outcome.id.sample for outcome in outcomes) == list(range(12))
    assert {event["kind"] for event in running.events} == {"serving"}
    pids = [pid for name in ("rollout-0", "rollout-1") for pid in running.processes(name)]
    running.stop()
    deadline = time.monotonic() + 60
    while not all(gone(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_worker_that_cannot_start_raises_its_own_error(tmp_path: Path) -> None:
    with pytest.raises(AttributeError, match="'int' object has no attribute 'exists'"):
        Stage(tmp_path, lambda name: ScriptedWorker.remote(start=1), 1)


def test_a_push_reaches_all_and_who_refuses_it_starts_anew_while_the_others_play(stage) -> None:
    refusals = iter([3, -1, -1, -1])
    running = stage(2, make=lambda name: ScriptedWorker.remote(refuses=next(refusals)))
    for version in (1, 2, 3):
        running.fleet.push(Learners(), version)
        running.fleet.settle()
        assert {outcome.reward for outcome in running.play(*["0.05"] * 8)} == {float(version)}
    [fault] = running.told("fault")
    assert "head.weight: other values than were sent" in fault["reason"]
    running.until(lambda: bool(running.told("healed")))
    assert running.told("healed")[0]["seconds"].keys() == {"detect", "start", "pull", "all"}
    assert {outcome.reward for outcome in running.play(*["0.05"] * 16)} == {3.0}


def test_members_join_and_leave_while_samples_are_played(stage, tmp_path: Path) -> None:
    running = stage(1)
    running.fleet.push(Learners(), 7)
    running.fleet.settle()
    for count in (3, 2, 1):
        write_scale(tmp_path, count)
        running.until(lambda count=count: running.fleet.counts().get("healthy") == count)
        outcomes = running.play(*["0.1"] * 24)
        assert {outcome.reward for outcome in outcomes} == {7.0} and len(outcomes) == 24
    running.until(lambda: running.fleet.counts() == {"healthy": 1, "retired": 2})
    assert [event["workers"] for event in running.told("scale")] == [3, 2, 1]
    assert not running.told("fault")


def test_when_nobody_can_be_healed_the_error_says_why(stage) -> None:
    running = stage(1, restarts_per_hour=0)
    with pytest.raises(FleetError, match=r"rollout-0: .*process"):
        running.play("die", "0.1")


@chaos
@pytest.mark.parametrize("query", ["die", "engine dies"])
def test_what_a_dead_process_played_is_played_again(stage, query: str) -> None:
    running = stage(2, **NO_PROBE)
    pid, engine = running.processes("rollout-0")
    os.kill(pid if query == "die" else engine, signal.SIGKILL)
    outcomes = running.play(*["0.2"] * 16)
    assert sorted(outcome.id.sample for outcome in outcomes) == list(range(16))
    assert not any(isinstance(outcome, FailedSample) for outcome in outcomes)
    running.until(lambda: bool(running.told("healed")))
    [fault] = running.told("fault")
    assert fault["member"] == "rollout-0"
    running.until(lambda: gone(pid) and gone(engine))
    assert running.processes("rollout-0") != (pid, engine)


@chaos
def test_the_end_of_an_engine_is_found_by_its_end_whoever_asks_for_what(stage) -> None:
    running = stage(1, **NO_PROBE)
    pid, engine = running.processes("rollout-0")
    os.kill(engine, signal.SIGKILL)
    running.until(lambda: bool(running.told("fault")))
    assert gone(pid) and running.told("fault")[0]["reason"] == f"process {pid} ended"


@chaos
@pytest.mark.parametrize("part", [0, 1], ids=["worker", "engine"])
@pytest.mark.parametrize("load", [0, 16])
def test_a_stopped_process_is_found_by_the_watch_whatever_it_plays(stage, part: int, load: int) -> None:
    running = stage(2, **NO_PROBE)
    pids = running.processes("rollout-1")
    os.kill(pids[part], signal.SIGSTOP)
    outcomes = running.play(*["0.3"] * load)
    assert len(outcomes) == load and not any(isinstance(outcome, FailedSample) for outcome in outcomes)
    running.until(lambda: bool(running.told("healed")))
    [fault] = running.told("fault")
    assert fault["member"] == "rollout-1"
    running.until(lambda: all(gone(pid) for pid in pids))


@chaos
def test_an_engine_that_gives_no_token_gets_no_samples_and_is_ended(stage) -> None:
    running = stage(2)
    task = SearchTask(SampleId("p"), "q", "wedge")
    running.fleet.members[1].handle.rollout.remote("train", task, AgentConfig(), Sampling(10))
    outcomes = running.play(*["0.1"] * 30)
    assert not any(isinstance(outcome, FailedSample) for outcome in outcomes)
    running.until(lambda: bool(running.told("healed")))
    [fault] = running.told("fault")
    assert fault["member"] == "rollout-1" and "fleet.probe_s" in fault["reason"]
    suspect = running.told("suspect")[0]
    assert suspect["member"] == "rollout-1" and running.events.index(suspect) < running.events.index(fault)


class Full:
    """A fleet that notes what its members play whenever nobody has room for another sample."""

    def __init__(self, fleet: RolloutFleet) -> None:
        self._fleet, self._now = fleet, Counter[str]()
        self.loads: list[dict[str, int]] = []

    def pick(self) -> Member | None:
        member = self._fleet.pick()
        if member is None:
            self.loads.append(dict(self._now))
        else:
            self._now[member.name] += 1
        return member

    def played(self, member: Member, *, died: bool = False, failed: bool = False) -> None:
        self._now[member.name] -= 1
        self._fleet.played(member, died=died, failed=failed)

    def serving(self) -> list[str]:
        return self._fleet.serving()

    def tick(self) -> None:
        self._fleet.tick()


def test_a_join_takes_nothing_from_those_who_play(stage, tmp_path: Path) -> None:
    """While the joiner starts, and while it takes weights, the others play on, with all their places taken.

    Each of the two lasts until they have played 40 samples, so that whoever waited for the joiner would do so for ever.
    """
    asked = []

    class Counting(Learners):
        def weights(self) -> ray.ObjectRef:
            asked.append(self)
            return super().weights()

    gates = {"starting": tmp_path / "started", "stale": tmp_path / "pulled"}  # by the state that each of them ends
    joiner = {"start": gates["starting"], "pull": gates["stale"]}
    running = stage(2, make=lambda name: ScriptedWorker.remote(**joiner if name == "rollout-2" else {}))
    running.fleet.push(Counting(), 3)
    running.fleet.settle()
    fleet, polls = Full(running.fleet), []
    first: dict[str, int] = {}  # samples that had been played when somebody was in a state first
    pump = RolloutPump(fleet, running.rewards, 60.0)
    tasks = [SearchTask(SampleId("p", sample), "q", "0.05") for sample in range(5000)]
    for played, _ in enumerate(pump.play("train", tasks, AgentConfig(), Sampling(10), polls.append), start=1):
        if played == 1:
            write_scale(tmp_path, 3)
        for state in running.fleet.counts():
            if played == first.setdefault(state, played) + 40 and state in gates:
                gates[state].touch()
        if running.fleet.counts() == {"healthy": 3}:
            break
    assert first.keys() == {"healthy", "starting", "stale"}
    assert len(fleet.loads) == len(polls)  # the pump never waited before it had given out what there was room for
    two = {"rollout-0": 4, "rollout-1": 4}
    assert [loads for loads in fleet.loads if loads not in (two, two | {"rollout-2": 4})] == []
    assert len(asked) == 1  # the learner has given its weights once, and the others have taken them once
    pushes = {member.name: ray.get(member.handle.pushes.remote()) for member in running.fleet.members}
    assert pushes == {"rollout-0": [3], "rollout-1": [3], "rollout-2": [3]}


@chaos
def test_a_joiner_that_dies_while_it_takes_weights_never_plays_with_old_ones(stage, tmp_path: Path) -> None:
    running = stage(1, make=lambda name: ScriptedWorker.remote(pull_s=0.0 if name == "rollout-0" else 2.0))
    running.fleet.push(Learners(), 5)
    running.fleet.settle()
    write_scale(tmp_path, 2)
    running.until(lambda: running.fleet.counts() == {"healthy": 1, "stale": 1})
    os.kill(running.processes("rollout-1")[0], signal.SIGKILL)
    outcomes = running.play(*["0.2"] * 40)
    assert {outcome.reward for outcome in outcomes} == {5.0}
    running.until(lambda: running.fleet.counts() == {"healthy": 2})
    assert [event["member"] for event in running.told("healed")] == ["rollout-1"]


@chaos
def test_a_spare_serves_while_the_dead_one_starts(stage, tmp_path: Path) -> None:
    gates = iter([None, None, tmp_path / "never"])
    running = stage(1, make=lambda name: ScriptedWorker.remote(start=next(gates)), spares=1)
    running.fleet.push(Learners(), 2)
    running.fleet.settle()
    os.kill(running.processes("rollout-0")[0], signal.SIGKILL)
    outcomes = running.play("0.05")
    assert outcomes[0].reward == 2.0
    assert running.told("healed")[0]["member"] == "rollout-1"
    running.until(lambda: running.fleet.counts() == {"restarting": 1, "healthy": 1})


@chaos
def test_an_actor_that_ray_starts_again_is_told_of_with_its_seconds(stage) -> None:
    running = stage(1)

    @ray.remote(num_cpus=0, max_restarts=-1)
    class Store:
        def get(self) -> int:
            return os.getpid()

    store = Store.remote()
    running.watch.guard("clips-train", "clips", store)
    for number in (signal.SIGKILL, signal.SIGSTOP):
        first, count = ray.get(store.get.remote()), len(running.events)
        running.until(lambda: "clips-train" in running.watch.places())
        os.kill(first, number)
        answer = store.get.options(max_task_retries=3).remote()
        running.until(lambda count=count: len(running.events) == count + 2)
        fault, healed = running.events[count:]
        assert (fault["kind"], fault["role"], healed["kind"]) == ("fault", "clips", "healed")
        assert healed["seconds"]["all"] == pytest.approx(healed["seconds"]["detect"] + healed["seconds"]["start"])
        assert ray.get(answer) != first


@chaos
def test_an_actor_that_another_takes_the_place_of_is_told_of_as_healed(stage) -> None:
    """As a shard, which ends with its retrieval service."""
    running = stage(1)

    @ray.remote(num_cpus=0)
    class Shard:
        pass

    first = Shard.remote()
    running.watch.guard("shard 0", "shard", first)
    running.until(lambda: "shard 0" in running.watch.places())
    ray.kill(first)
    running.until(lambda: bool(running.told("fault")))
    running.until(lambda: "shard 0" not in running.watch.places())
    second = Shard.remote()
    running.watch.guard("shard 0", "shard", second)
    running.until(lambda: bool(running.told("healed")))
    [fault], [healed] = running.told("fault"), running.told("healed")
    assert fault["member"] == healed["member"] == "shard 0"
    assert healed["seconds"]["detect"] == fault["seconds"]["detect"]
