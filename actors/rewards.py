"""The reward worker: the environment's rewards behind an actor, without state, so any worker can score anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import ray

from actors.handles import RETRIES, unordered
from actors.logs import log_to
from vsr1.episode.rewards import RewardError, Rewards, scored
from vsr1.episode.sample import FailedSample
from vsr1.search.record import SearchTrajectory


class RewardWorkerActor:
    def __init__(self, rewards: Rewards[Any, Any], log: Path | None = None) -> None:
        log_to(log)
        self._rewards = rewards

    @ray.method(max_task_retries=RETRIES)
    def score(self, trajectories: list[SearchTrajectory]) -> list[SearchTrajectory | FailedSample]:
        """Return copies with terms and reward filled in, in order; what has no reward comes back as failed."""
        return [self._score(trajectory) for trajectory in trajectories]

    def _score(self, trajectory: SearchTrajectory) -> SearchTrajectory | FailedSample:
        try:
            return scored(trajectory, self._rewards)
        except RewardError as error:
            return FailedSample(trajectory.id, type(error).__name__, str(error))


class RewardWorkerHandle(Protocol):
    """What Ray gives for a `RewardWorkerActor`; each method is called with `.remote`."""

    score: Any


RewardWorker: Any = unordered(RewardWorkerActor)
