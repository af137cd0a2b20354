"""The reward worker: `vsr1.rewards` behind an actor, without state, so that any worker can score any trajectory."""

from __future__ import annotations

from typing import Any

import ray

from vsr1.agent.trajectory import Trajectory
from vsr1.config import RewardConfig
from vsr1.rewards.score import scored


class RewardWorkerActor:
    def __init__(self, config: RewardConfig) -> None:
        self._config = config

    def score(self, trajectories: list[Trajectory]) -> list[Trajectory]:
        """Copies with `terms` and `reward` filled in, in the order given.

        Raises:
            RewardError: a trajectory that cannot be scored, named by term and query; then none is returned.
        """
        return [scored(trajectory, self._config) for trajectory in trajectories]


RewardWorker: Any = ray.remote(RewardWorkerActor)  # Any: the stubs of Ray give a handle no `.remote`
