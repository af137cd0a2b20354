"""Plays samples on rollout workers and scores what they return, a bounded number at one time.

Every task leaves exactly once, as a scored trajectory or as a failed sample with its reason. What the fleet lost with a
member is played again; what finished together is scored together, by a reward worker that is idle.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import ray

from actors.rewards import RewardWorkerHandle
from actors.rollout import Sampling
from pipelines.stage.fleet import Member, RolloutFleet
from vsr1.episode.sample import FailedSample
from vsr1.search.record import SearchTask, SearchTrajectory
from vsr1.settings.parts import AgentConfig

Outcome = SearchTrajectory | FailedSample
TICK_S = 0.25  # between two looks at the fleet


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
    member: Member
    deadline: float


class RolloutPump:
    """Use it for one set of tasks at a time.

    Args:
        deadline_s: seconds after which an episode is cancelled, and fails with `DeadlineError`.
    """

    def __init__(self, fleet: RolloutFleet, rewards: list[RewardWorkerHandle], deadline_s: float) -> None:
        self._fleet, self._rewards, self._deadline_s = fleet, rewards, deadline_s

    def play(
        self,
        split: str,
        tasks: Iterable[SearchTask],
        agent: AgentConfig,
        sampling: Sampling,
        watch: Callable[[Occupancy], None],
    ) -> Iterator[Outcome]:
        """Yield outcomes in the order in which they come.

        Args:
            watch: is told what goes on whenever that may have changed.

        Raises:
            FleetError: no rollout worker can be healed any more.
        """
        waiting = deque(tasks)
        episodes: dict[ray.ObjectRef, _Episode] = {}
        scoring: dict[ray.ObjectRef, int] = {}  # reward worker of each batch
        unscored: list[SearchTrajectory] = []
        count = 0
        while True:
            self._fleet.tick()
            while waiting and (member := self._fleet.pick()) is not None:
                task = waiting.popleft()
                reference = member.handle.rollout.remote(split, task, agent, sampling)
                episodes[reference] = _Episode(task, member, time.monotonic() + self._deadline_s)
            idle = set(range(len(self._rewards))) - set(scoring.values())
            if unscored and idle:
                worker = idle.pop()
                scoring[self._rewards[worker].score.remote(unscored)] = worker
                unscored = []
            if not episodes and not scoring and not waiting:
                return
            busy = {episode.member.name for episode in episodes.values()}
            watch(Occupancy(count, len(busy), len(episodes), len(scoring)))
            for reference in _ready([*episodes, *scoring]):
                if reference in scoring:
                    del scoring[reference]
                    batch = ray.get(reference)
                    count += len(batch)
                    yield from batch
                    continue
                episode = episodes.pop(reference)
                outcome = _outcome(reference, episode.task)
                if outcome is None:
                    self._fleet.played(episode.member, died=True)
                    waiting.appendleft(episode.task)
                    continue
                self._fleet.played(episode.member, failed=isinstance(outcome, FailedSample))
                if isinstance(outcome, FailedSample):
                    count += 1
                    yield outcome
                else:
                    unscored.append(outcome)
            now = time.monotonic()
            for reference in [reference for reference, episode in episodes.items() if episode.deadline <= now]:
                episode = episodes.pop(reference)
                self._fleet.played(episode.member, failed=True)
                ray.cancel(reference)
                count += 1
                message = f"no end after {self._deadline_s:g} s (rollout.deadline_s) on {episode.member.name}"
                yield FailedSample(episode.task.id, "DeadlineError", message)


def _ready(references: list[ray.ObjectRef]) -> list[ray.ObjectRef]:
    """Wait for one of the references, at most until the fleet is looked at again; return all that are there by then."""
    if not references:
        time.sleep(TICK_S)
        return []
    ray.wait(references, timeout=TICK_S)
    return ray.wait(references, num_returns=len(references), timeout=0)[0]


def _outcome(reference: Any, task: SearchTask) -> Outcome | None:
    """Return what became of an episode, None where its worker died."""
    try:
        trajectory: SearchTrajectory = ray.get(reference)
        return trajectory
    except ray.exceptions.RayActorError:
        return None
    except ray.exceptions.RayTaskError as error:
        return FailedSample(task.id, type(error.cause).__name__, str(error.cause))
