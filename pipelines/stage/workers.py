"""The actors around the learner: retrieval, clips, rewards and rollouts of some splits.

They start together and stop together; a call that reaches a dead one raises with its name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from actors.clips import ClipStores
from actors.corpus import CorpusActors, resources
from actors.learner import LearnerGroup
from actors.rewards import RewardWorker, RewardWorkerHandle
from actors.rollout import RolloutWorker, RolloutWorkerHandle, Sampling
from pipelines.stage.fleet import Member, RolloutFleet
from pipelines.stage.plays import Outcome
from pipelines.stage.progress import QUIET, Load, Progress
from pipelines.stage.pump import Occupancy, RolloutPump
from vsr1.config import Config
from vsr1.engine.gate import PushError
from vsr1.episode.sample import FailedSample
from vsr1.formats.dataset import DatasetFolder
from vsr1.search.record import SearchTask, SearchTrajectory
from vsr1.settings.parts import AgentConfig
from vsr1.video.clips import ClipFolder


class RolloutError(RuntimeError):
    """Samples that failed where none may; the message says how many and shows the first."""


@dataclass
class Workers:
    clips: dict[str, ClipStores]  # by split
    rewards: list[RewardWorkerHandle]
    rollouts: list[RolloutWorkerHandle]
    transfer: str
    pump: RolloutPump
    progress: Progress = QUIET
    _connected: bool = False

    def play(
        self, split: str, tasks: Sequence[SearchTask], agent: AgentConfig, sampling: Sampling, phase: str = "rollouts"
    ) -> Iterator[Outcome]:
        """Play and score the tasks over all workers; outcomes in the order in which they come.

        A dead actor raises Ray's own error.

        Args:
            phase: what the progress calls it.
        """

        def show(now: Occupancy) -> None:
            loads = {"rollout": Load(now.rollout_workers, now.waiting), "rewards": Load(now.reward_workers)}
            self.progress.now(f"{phase} {now.finished} of {len(tasks)}", retrieval=Load(1), **loads)

        return self.pump.play(split, tasks, agent, sampling, show)

    def push(self, learners: LearnerGroup, version: int) -> None:
        """Bring the learner's weights into every engine, in the way that `rollout.transfer` says.

        Each engine checks what it got before it answers again.

        Raises:
            PushError: names the first worker that did not take them; its engine answers nothing until a push succeeds.
        """
        self.progress.now("pushing the weights", rollout=Load(len(self.rollouts)), learner=Load(learners.ranks))
        pending: dict[ray.ObjectRef, str] = {}
        if self.transfer == "nccl":
            if not self._connected:
                learners.open_transfer(self.rollouts)
                self._connected = True
            sent: Any = (learners.layout(), learners.broadcast())
            pending[sent[1]] = "the learner"
        else:
            sent = learners.share() if self.transfer == "ipc" else learners.weights()
        for i, worker in enumerate(self.rollouts):
            pending[worker.push.remote(self.transfer, sent, version)] = f"rollout worker {i}"
        while pending:
            [ready], _ = ray.wait(list(pending))
            member = pending.pop(ready)
            try:
                ray.get(ready)
            except ray.exceptions.RayError as error:
                cause = getattr(error, "cause", error)
                message = f"{member} failed in the push of weights {version}: {type(cause).__name__}: {cause}"
                raise PushError(message) from error


def complete(outcomes: list[Outcome], tolerated: float = 0.0) -> tuple[list[SearchTrajectory], list[FailedSample]]:
    """Return trajectories and failures apart.

    Raises:
        RolloutError: more than the tolerated share of them failed.
    """
    failed = [outcome for outcome in outcomes if isinstance(outcome, FailedSample)]
    if len(failed) > tolerated * len(outcomes):
        first = failed[0]
        raise RolloutError(
            f"{len(failed)} of {len(outcomes)} samples failed; the first, {first.id}: {first.reason}: {first.message}"
        )
    return [outcome for outcome in outcomes if not isinstance(outcome, FailedSample)], failed


@contextmanager
def workers(config: Config, *splits: str, progress: Progress = QUIET) -> Iterator[Workers]:
    """Start the actors for these splits and wait until each is ready; stop them on the way out."""
    need, logs, folder = config.cluster, config.run_dir / "logs", DatasetFolder(config.data.root)
    corpora = {
        split: CorpusActors(
            config,
            split,
            ClipFolder(folder.clips(split), config.data.timestamps),
            sharers=len(splits),
            name=f"retrieval-{split}",
            logs=logs,
        )
        for split in splits
    }
    retrieval = {split: corpus.retrieval for split, corpus in corpora.items()}
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
            worker.start.remote({split: corpus.stores.on(node) for split, corpus in corpora.items()})
            for worker, node in zip(rollouts, nodes, strict=True)
        ]
        ray.get([*[corpus.ready() for corpus in corpora.values()], *started])
        rollout = config.rollout
        at_once = rollout.max_episodes or 2 * rollout.engine.max_num_seqs
        members = [Member(f"rollout worker {i}", worker) for i, worker in enumerate(rollouts)]
        pump = RolloutPump(RolloutFleet(members, at_once), rewards, rollout.deadline_s)
        clips = {split: corpus.stores for split, corpus in corpora.items()}
        yield Workers(clips, rewards, rollouts, rollout.transfer, pump, progress)
    finally:
        _stop(rollouts, rewards)
        for corpus in corpora.values():
            corpus.stop()


def _stop(rollouts: list[Any], others: list[Any]) -> None:
    """Let engines end their processes, then end the actors; a dead actor needs no stopping."""
    for worker in rollouts:
        try:
            ray.get(worker.stop.remote(), timeout=30)
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
            continue
    for actor in [*rollouts, *others]:
        ray.kill(actor)
