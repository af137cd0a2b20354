"""The actors around the learner: retrieval, clips, rewards and rollouts of one split.

Services start together and stop together; a call that reaches a dead one raises with its name.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
import ray.data

from actors.clips import ClipStores
from actors.learner import LearnerGroup
from actors.retrieval import RetrievalService
from actors.rewards import RewardWorker
from actors.rollout import RolloutWorker
from pipelines.machine import check_port
from vsr1.agent.search import SearchTask
from vsr1.agent.trajectory import Trajectory
from vsr1.config import ActorResources, Config
from vsr1.formats.clips import ClipFolder
from vsr1.formats.dataset import DatasetFolder

CLIP_BUDGET_SHARE = 0.5  # of the object store


@dataclass
class Services:
    retrieval: Any
    clips: Any
    rewards: list[Any]
    rollouts: list[Any]
    transfer: str
    _connected: bool = False

    def rollout(self, tasks: list[SearchTask], temperature: float) -> Iterator[Trajectory]:
        """Play the tasks over all workers; trajectories in the order they finish."""
        pending = [
            self.rollouts[i % len(self.rollouts)].rollout.remote(task, temperature) for i, task in enumerate(tasks)
        ]
        while pending:
            [done], pending = ray.wait(pending)
            yield ray.get(done)

    def score(self, trajectories: list[Trajectory]) -> list[Trajectory]:
        """Reward every trajectory, in the order given."""
        count = len(self.rewards)
        parts = ray.get([worker.score.remote(trajectories[i::count]) for i, worker in enumerate(self.rewards)])
        return [parts[i % count][i // count] for i in range(len(trajectories))]

    def push(self, learners: LearnerGroup, version: int) -> None:
        """Bring the learner's weights into every engine, in the way that `rollout.transfer` says, and check them."""
        if self.transfer == "nccl":
            if not self._connected:
                learners.open_transfer(self.rollouts)
                self._connected = True
            layout = learners.layout()
            receiving = [worker.receive.remote(layout, version) for worker in self.rollouts]
            manifest = learners.broadcast()
            ray.get([manifest, *receiving])
            ray.get([worker.check_weights.remote(manifest) for worker in self.rollouts])
            return
        weights = learners.share() if self.transfer == "ipc" else learners.weights()
        ray.get([worker.push.remote(weights, version) for worker in self.rollouts])


def resources(need: ActorResources) -> dict[str, Any]:
    """Ray options that reserve this."""
    return {"num_cpus": need.cpus, "num_gpus": need.gpus, "memory": int(need.memory_gib * 2**30)}


@contextmanager
def services(config: Config, split: str) -> Iterator[Services]:
    """Start the actors for one split and wait until each is ready; stop them on the way out."""
    need = config.cluster
    reader = ClipFolder(DatasetFolder(config.data.root).clips(split), config.data.timestamps)
    retrieval = RetrievalService.options(**resources(need.retrieval), name=f"retrieval-{split}").remote(config, split)
    budget = int(need.object_store_gib * 2**30 * CLIP_BUDGET_SHARE)
    clips = ClipStores(reader, budget, resources(need.clips))
    rewards = [
        RewardWorker.options(**resources(need.reward)).remote(config.rewards) for _ in range(need.reward_workers)
    ]
    rollouts = [
        RolloutWorker.options(**resources(need.rollout)).remote(config, retrieval)
        for _ in range(config.rollout.workers)
    ]
    try:
        nodes = ray.get([worker.node.remote() for worker in rollouts])
        started = [worker.start.remote(clips.on(node)) for worker, node in zip(rollouts, nodes, strict=True)]
        ray.get([retrieval.ready.remote(), *started])
        yield Services(retrieval, clips.here(), rewards, rollouts, config.rollout.transfer)
    finally:
        _stop(rollouts, [retrieval, *clips.actors(), *rewards])


def _stop(rollouts: list[Any], others: list[Any]) -> None:
    """Let engines end their processes, then end the actors; a dead actor needs no stopping."""
    for worker in rollouts:
        try:
            ray.get(worker.stop.remote(), timeout=30)
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
            continue
    for actor in [*rollouts, *others]:
        ray.kill(actor)


def connect(config: Config) -> None:
    """Join the cluster that the configuration names, the job's own, or start a local one.

    Raises:
        MachineError: a local one is wanted and no port is free.
    """
    if ray.is_initialized():
        return
    cluster = config.cluster
    address = cluster.address or os.environ.get("RAY_ADDRESS", "local")  # Ray sets the variable inside a job
    if address == "local":
        check_port()
    local = {
        "num_cpus": cluster.num_cpus,
        "object_store_memory": int(cluster.object_store_gib * 2**30),
        "include_dashboard": False,
    }
    ray.data.DataContext.get_current().enable_progress_bars = False  # the stages show their own
    for name, level in {"ray.data": logging.WARNING, "ray.data._internal.progress": logging.ERROR}.items():
        logging.getLogger(name).setLevel(level)
    ray.init(address=address, logging_level="warning", log_to_driver=False, **(local if address == "local" else {}))
