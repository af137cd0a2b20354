"""The actors around the learner: retrieval, clips, rewards and rollouts of one split.

Services start together and stop together; a call that reaches a dead one raises with its name.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
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
from actors.rollout import RolloutWorker, Sampling
from pipelines.machine.resources import check_port
from pipelines.stage.progress import QUIET, Load, Progress
from vsr1.config import Config
from vsr1.episode.trajectory import FailedSample, Trajectory
from vsr1.formats.dataset import DatasetFolder
from vsr1.search.environment import SearchTask
from vsr1.settings.parts import ActorResources, AgentConfig
from vsr1.video.clips import ClipFolder

CLIP_BUDGET_SHARE = 0.5  # of the object store


Outcome = Trajectory | FailedSample


class RolloutError(RuntimeError):
    """Samples that failed where none may; the message says how many and shows the first."""


@dataclass
class Services:
    clips: dict[str, ClipStores]  # by split
    rewards: list[Any]
    rollouts: list[Any]
    transfer: str
    at_once: int  # episodes that a rollout worker plays at one time
    progress: Progress = QUIET
    _connected: bool = False

    def rollout(
        self, split: str, tasks: list[SearchTask], agent: AgentConfig, sampling: Sampling, phase: str = "rollouts"
    ) -> Iterator[Outcome]:
        """Play the tasks over all workers; outcomes in the order they finish. A dead actor raises Ray's own error.

        Args:
            phase: what the progress calls it.
        """
        pending: dict[Any, tuple[int, SearchTask]] = {}
        queues: Counter[int] = Counter()  # tasks by worker
        for i, task in enumerate(tasks):
            worker = i % len(self.rollouts)
            pending[self.rollouts[worker].rollout.remote(split, task, agent, sampling)] = worker, task
            queues[worker] += 1
        while pending:
            waiting = sum(max(0, length - self.at_once) for length in queues.values())
            done_of = f"{phase} {len(tasks) - len(pending)} of {len(tasks)}"
            self.progress.now(done_of, rollout=Load(len(+queues), waiting), retrieval=Load(1))
            [done], _ = ray.wait(list(pending))
            worker, task = pending.pop(done)
            queues[worker] -= 1
            try:
                yield ray.get(done)
            except ray.exceptions.RayActorError:
                raise
            except ray.exceptions.RayTaskError as error:
                yield FailedSample(task.query_id, task.sample, type(error.cause).__name__, str(error.cause))

    def score(self, trajectories: list[Trajectory]) -> list[Outcome]:
        """Reward every trajectory, in the order given."""
        count = len(self.rewards)
        self.progress.now("scoring", rewards=Load(min(count, len(trajectories)), max(0, len(trajectories) - count)))
        parts = ray.get([worker.score.remote(trajectories[i::count]) for i, worker in enumerate(self.rewards)])
        return [parts[i % count][i // count] for i in range(len(trajectories))]

    def push(self, learners: LearnerGroup, version: int) -> None:
        """Bring the learner's weights into every engine, in the way that `rollout.transfer` says, and check them."""
        self.progress.now("pushing the weights", rollout=Load(len(self.rollouts)), learner=Load(learners.ranks))
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


def complete(outcomes: list[Outcome], tolerated: float = 0.0) -> tuple[list[Trajectory], list[FailedSample]]:
    """Take outcomes apart.

    Raises:
        RolloutError: more than the tolerated share of them failed.
    """
    failed = [outcome for outcome in outcomes if isinstance(outcome, FailedSample)]
    if len(failed) > tolerated * len(outcomes):
        first = failed[0]
        raise RolloutError(
            f"{len(failed)} of {len(outcomes)} samples failed; the first, sample {first.sample} of query "
            f"{first.query_id!r}: {first.reason}: {first.message}"
        )
    return [outcome for outcome in outcomes if isinstance(outcome, Trajectory)], failed


@contextmanager
def services(config: Config, *splits: str, progress: Progress = QUIET) -> Iterator[Services]:
    """Start the actors for these splits and wait until each is ready; stop them on the way out."""
    need, logs = config.cluster, config.run_dir / "logs"
    retrieval = {
        split: RetrievalService.options(**resources(need.retrieval), name=f"retrieval-{split}").remote(
            config, split, logs=logs
        )
        for split in splits
    }
    budget = int(need.object_store_gib * 2**30 * CLIP_BUDGET_SHARE / len(splits))
    clips = {
        split: ClipStores(_clip_folder(config, split), budget, resources(need.clips), logs / f"clips-{split}.log")
        for split in splits
    }
    rewards = [
        RewardWorker.options(**resources(need.reward)).remote(config.rewards, logs / f"reward-{i}.log")
        for i in range(need.reward_workers)
    ]
    rollouts = [
        RolloutWorker.options(**resources(need.rollout)).remote(config, retrieval, logs / f"rollout-{i}.log")
        for i in range(config.rollout.workers)
    ]
    try:
        nodes = ray.get([worker.node.remote() for worker in rollouts])
        started = [
            worker.start.remote({split: stores.on(node) for split, stores in clips.items()})
            for worker, node in zip(rollouts, nodes, strict=True)
        ]
        ray.get([*[service.ready.remote() for service in retrieval.values()], *started])
        rollout = config.rollout
        yield Services(clips, rewards, rollouts, rollout.transfer, rollout.engine.max_num_seqs, progress)
    finally:
        stores = [actor for split in splits for actor in clips[split].actors()]
        _stop(rollouts, [*retrieval.values(), *stores, *rewards])


def _clip_folder(config: Config, split: str) -> ClipFolder:
    return ClipFolder(DatasetFolder(config.data.root).clips(split), config.data.timestamps)


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
