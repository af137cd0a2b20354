"""Plays samples on rollout workers and scores what they return, a bounded number at one time.

Every task leaves exactly once, as a scored trajectory or as a failed sample with its reason. A task goes to the worker
with the fewest episodes; what finished together is scored together, by a reward worker that is idle.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import ray

from actors.rewards import RewardWorkerHandle
from actors.rollout import RolloutWorkerHandle, Sampling
from vsr1.episode.sample import FailedSample
from vsr1.search.record import SearchTask, SearchTrajectory
from vsr1.settings.parts import AgentConfig

Outcome = SearchTrajectory | FailedSample


@dataclass(frozen=True)
class Occupancy:
    """What goes on at one moment."""

    finished: int  # tasks that have left
    rollout_workers: int  # that play an episode
    episodes: int
    reward_workers: int  # that score


@dataclass
class _Episode:
    task: SearchTask
    worker: int
    deadline: float


class RolloutPump:
    """Use it for one set of tasks at a time.

    Args:
        at_once: episodes that a rollout worker plays at one time.
        deadline_s: seconds after which an episode is cancelled, and fails with `DeadlineError`.
    """

    def __init__(
        self,
        rollouts: list[RolloutWorkerHandle],
        rewards: list[RewardWorkerHandle],
        at_once: int,
        deadline_s: float,
    ) -> None:
        self._rollouts, self._rewards = rollouts, rewards
        self._at_once, self._deadline_s = at_once, deadline_s

    def play(
        self,
        split: str,
        tasks: Iterable[SearchTask],
        agent: AgentConfig,
        sampling: Sampling,
        watch: Callable[[Occupancy], None],
    ) -> Iterator[Outcome]:
        """Yield outcomes in the order in which they come; a dead actor raises Ray's own error.

        Args:
            watch: is told what goes on whenever that changes.
        """
        waiting = iter(tasks)
        episodes: dict[ray.ObjectRef, _Episode] = {}
        scoring: dict[ray.ObjectRef, int] = {}  # reward worker of each batch
        unscored: list[SearchTrajectory] = []
        load: Counter[int] = Counter()  # episodes by rollout worker
        count = 0
        while True:
            while len(episodes) < self._at_once * len(self._rollouts) and (task := next(waiting, None)) is not None:
                worker = min(range(len(self._rollouts)), key=lambda worker: load[worker])
                reference = self._rollouts[worker].rollout.remote(split, task, agent, sampling)
                episodes[reference] = _Episode(task, worker, time.monotonic() + self._deadline_s)
                load[worker] += 1
            idle = set(range(len(self._rewards))) - set(scoring.values())
            if unscored and idle:
                worker = idle.pop()
                scoring[self._rewards[worker].score.remote(unscored)] = worker
                unscored = []
            if not episodes and not scoring:
                return
            watch(Occupancy(count, len(+load), len(episodes), len(scoring)))
            for reference in _ready([*episodes, *scoring], min((e.deadline for e in episodes.values()), default=None)):
                if reference in scoring:
                    del scoring[reference]
                    batch = ray.get(reference)
                    count += len(batch)
                    yield from batch
                    continue
                episode = episodes.pop(reference)
                load[episode.worker] -= 1
                outcome = _outcome(reference, episode.task)
                if isinstance(outcome, FailedSample):
                    count += 1
                    yield outcome
                else:
                    unscored.append(outcome)
            now = time.monotonic()
            for reference in [reference for reference, episode in episodes.items() if episode.deadline <= now]:
                episode = episodes.pop(reference)
                load[episode.worker] -= 1
                ray.cancel(reference)
                count += 1
                where = f"rollout worker {episode.worker}"
                message = f"no end after {self._deadline_s:g} s (rollout.deadline_s) on {where}"
                yield FailedSample(episode.task.id, "DeadlineError", message)


def _ready(references: list[ray.ObjectRef], deadline: float | None) -> list[ray.ObjectRef]:
    """Wait for one of the references, at most until the deadline; return all that are there by then."""
    timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
    ray.wait(references, timeout=timeout)
    return ray.wait(references, num_returns=len(references), timeout=0)[0]


def _outcome(reference: Any, task: SearchTask) -> Outcome:
    try:
        trajectory: SearchTrajectory = ray.get(reference)
        return trajectory
    except ray.exceptions.RayActorError:
        raise
    except ray.exceptions.RayTaskError as error:
        return FailedSample(task.id, type(error.cause).__name__, str(error.cause))
