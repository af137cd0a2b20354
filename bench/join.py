"""What rollout workers lose while another one joins: samples a second before the join, and during it.

With engines that wait instead of computing the figure shows what the fleet does, not what the machine can.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from itertools import count, islice
from typing import Any

import ray

from actors.rollout import Sampling
from pipelines.data.build import ensure_dataset
from pipelines.stage.connection import connect
from pipelines.stage.fleet import RolloutFleet
from pipelines.stage.pump import RolloutPump
from pipelines.stage.tasks import PromptStream, group_of
from pipelines.stage.watch import Watch
from pipelines.stage.workers import workers
from vsr1.config import Config
from vsr1.episode.sample import SampleId
from vsr1.search.record import SearchTask, SearchTrajectory
from vsr1.settings.parts import AgentConfig

WARM_UP_S = 2.0
MOST = 10_000  # samples
EPISODE_S, START_S, PULL_S = 0.25, 5.0, 1.0  # of engines that wait
WEIGHTS = 50_000_000  # bytes that the joiner takes


class _WaitingWorker:
    """What a fleet and a pump ask of a `RolloutWorkerActor`; each method takes a fixed time and no CPU."""

    def __init__(self, is_joiner: bool) -> None:
        self._start_s, self._pull_s = (START_S, PULL_S) if is_joiner else (0.0, 0.0)

    async def node(self) -> str:
        return str(ray.get_runtime_context().get_node_id())

    async def start(self, clips: dict[str, Any]) -> None:
        await asyncio.sleep(self._start_s)

    async def probe(self) -> None:
        pass

    async def rollout(
        self, split: str, task: SearchTask, agent: AgentConfig, sampling: Sampling, finished: Sequence[Any] = ()
    ) -> AsyncIterator[SearchTrajectory]:
        await asyncio.sleep(EPISODE_S)
        yield SearchTrajectory(task)

    async def push(self, way: str, sent: Any, version: int) -> str:
        await asyncio.sleep(self._pull_s)
        return str(version)

    async def stop(self) -> None:
        pass


class _Rewards:
    def score(self, trajectories: list[SearchTrajectory]) -> list[SearchTrajectory]:
        return trajectories


class _Learners:
    """What a push asks of a `LearnerGroup`."""

    def weights(self) -> ray.ObjectRef:
        return ray.put((bytes(WEIGHTS), {}))


def bench_join(config: Config, before_s: float, is_scripted: bool) -> dict[str, float]:
    """Let one more than `rollout.workers` play, and return the samples a second of both times and their ratio."""
    connect(config)
    ends, asked = list[float](), 0.0
    with _scripted(config) if is_scripted else _real(config) as (fleet, pump, tasks):
        began = time.monotonic() + WARM_UP_S
        for _ in pump.play("train", tasks, config.agent, Sampling(config.retrieval.top_k), lambda now: None):
            ends.append(time.monotonic())
            if not asked and ends[-1] >= began + before_s:
                asked = ends[-1]
                fleet.scale(config.rollout.workers + 1)
            if len(fleet.serving()) > config.rollout.workers:
                break
    join_s = ends[-1] - asked
    before = sum(began < end <= asked for end in ends) / (asked - began)
    during = sum(end > asked for end in ends) / join_s
    return {"samples_per_s_before": before, "during": during, "ratio": during / before, "join_s": join_s}


Playing = tuple[RolloutFleet, RolloutPump, list[SearchTask]]


@contextmanager
def _real(config: Config) -> Iterator[Playing]:
    ensure_dataset(config)
    with workers(config, "train") as stage:
        groups = (group_of(prompt, config.grpo.group_size) for prompt in PromptStream(config))
        yield stage.fleet, stage.pump, list(islice((task for group in groups for task in group), MOST))


@contextmanager
def _scripted(config: Config) -> Iterator[Playing]:
    worker: Any = ray.remote(num_cpus=0)(_WaitingWorker)
    scorer: Any = ray.remote(num_cpus=0)(_Rewards)
    watch, members, first = Watch(config.fleet), count(), config.rollout.workers
    fleet = RolloutFleet(config, lambda name: worker.remote(next(members) >= first), lambda node: {}, watch)
    fleet.start()
    fleet.push(_Learners(), 1)
    fleet.settle()
    try:
        pump = RolloutPump(fleet, [scorer.remote()], config.rollout.deadline_s)
        yield fleet, pump, [SearchTask(SampleId(f"p{number}"), "q", "x") for number in range(MOST)]
    finally:
        fleet.stop()
        watch.stop()
