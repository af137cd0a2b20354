"""The reward worker: `vsr1.rewards` behind an actor, without state, so that any worker can score any trajectory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray

from actors.logs import log_to
from vsr1.episode.trajectory import FailedSample, Trajectory
from vsr1.rewards.score import scored
from vsr1.rewards.terms import RewardError
from vsr1.settings.training import RewardConfig


class RewardWorkerActor:
    def __init__(self, config: RewardConfig, log: Path | None = None) -> None:
        log_to(log)
        self._config = config

    def score(self, trajectories: list[Trajectory]) -> list[Trajectory | FailedSample]:
        """Copies with terms and reward filled in, in the order given; what has no reward comes back as failed."""
        return [self._score(trajectory) for trajectory in trajectories]

    def _score(self, trajectory: Trajectory) -> Trajectory | FailedSample:
        try:
            return scored(trajectory, self._config)
        except RewardError as error:
            return FailedSample(trajectory.query_id, trajectory.sample, type(error).__name__, str(error))


RewardWorker: Any = ray.remote(RewardWorkerActor)  # Any: the stubs of Ray give a handle no `.remote`
