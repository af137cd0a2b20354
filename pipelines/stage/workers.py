"""The actors around the learner: retrieval, clips, rewards and rollouts of some splits.

They start together and stop together. One that dies or stands still is started again: by the fleet if it is a rollout
worker, else by Ray, which asks it again what had not been answered.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from actors.clips import ClipReader
from actors.corpus import CorpusActors
from actors.healing import HealingLearners
from actors.learner import LearnerGroup
from actors.places import placed
from actors.rewards import RewardWorker, RewardWorkerHandle
from actors.rollout import RolloutWorker, RolloutWorkerHandle, Sampling, tools_name
from actors.tools import FilmActors, FilmClips, ToolRouterHandle, films_of, start_tools
from pipelines.stage.fleet import RolloutFleet
from pipelines.stage.plays import Outcome
from pipelines.stage.progress import QUIET, Load, Progress
from pipelines.stage.pump import Occupancy, RolloutPump
from pipelines.stage.watch import Watch
from vsr1.config import Config
from vsr1.environments.registry import environment_of
from vsr1.episode.sample import FailedSample
from vsr1.formats.dataset import DatasetFolder
from vsr1.runs.events import EVENTS, EventLog
from vsr1.search.record import SearchTask, SearchTrajectory
from vsr1.settings.parts import AgentConfig
from vsr1.video.clips import ClipFolder

ALWAYS = -1  # restarts by Ray


class RolloutError(RuntimeError):
    """Samples that failed where none may; the message says how many and shows the first."""


@dataclass
class Workers:
    corpora: dict[str, CorpusActors | FilmActors]  # by split
    rewards: list[RewardWorkerHandle]
    fleet: RolloutFleet
    pump: RolloutPump
    watch: Watch
    events: EventLog
    progress: Progress = QUIET
    is_ahead: bool = False  # rollouts run ahead of the learner, so nobody waits for a push

    def play(
        self, split: str, tasks: Sequence[SearchTask], agent: AgentConfig, sampling: Sampling, phase: str = "rollouts"
    ) -> Iterator[Outcome]:
        """Play and score the tasks over all workers; outcomes in the order in which they come.

        Args:
            phase: what the progress calls it.
        """

        def show(now: Occupancy) -> None:
            loads = {"rollout": Load(now.rollout_workers, now.waiting), "rewards": Load(now.reward_workers)}
            self.progress.now(f"{phase} {now.finished} of {len(tasks)}", retrieval=Load(1), **loads)

        return self.pump.play(split, tasks, agent, sampling, show)

    def push(self, learners: LearnerGroup, version: int) -> None:
        """Bring the learner's weights into every engine, in the way that `rollout.transfer` says, and wait for that.

        Each engine checks what it got before it plays new samples; one that does not take them is started again.
        """
        loads = {"rollout": Load(len(self.fleet.members)), "learner": Load(learners.ranks)}
        self.progress.now("pushing the weights", **loads)
        self.fleet.push(learners, version)
        if not self.is_ahead:
            self.fleet.settle()

    def start(self) -> None:
        """Wait until every actor is ready; the first engine that cannot start raises its error."""
        self.fleet.start()
        ray.get([corpus.ready() for corpus in self.corpora.values()])

    @contextmanager
    def learners(self, config: Config, split: str) -> Iterator[HealingLearners]:
        """Start the learner of clips of a split, and all that has not been started; yield it when all are ready.

        They start at one time unless they share a GPU: an engine finds out at its start how much memory others leave.
        """

        stores, watch = self.corpora[split].stores, self.watch
        learners = HealingLearners(config, stores, config.run_dir / "logs", watch.guard_rank, self.events.write)
        if config.cluster.learner.gpus % 1 or config.cluster.rollout.gpus % 1:
            self.start()
        thread = ThreadPoolExecutor(1, "start of the learner")
        try:
            starting = thread.submit(learners.__enter__)
            self.start()
            starting.result()
            yield learners
        finally:
            learners.close()
            thread.shutdown(wait=False)


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
def workers(config: Config, *splits: str, progress: Progress = QUIET, wait: bool = True) -> Iterator[Workers]:
    """Start the actors for these splits; stop them on the way out.

    Args:
        wait: until each is ready; else `Workers.start` or `Workers.learners` does.
    """
    need, logs, folder = config.cluster, config.run_dir / "logs", DatasetFolder(config.data.root)
    environment = environment_of(config)
    events = EventLog(config.run_dir / EVENTS)
    watch = Watch(config.fleet, logs / "watch.log", events.write)

    def corpus_of(split: str) -> CorpusActors | FilmActors:
        if not environment.has_corpus:
            return FilmActors(config, split, sharers=len(splits), logs=logs)
        clips: ClipReader = ClipFolder(folder.clips(split), config.data.timestamps)
        if environment.has_films:
            films = films_of(config, split)
            tools[tools_name(split)] = start_tools(config, films, logs / f"{tools_name(split)}.log")
            clips = FilmClips(clips, films)
        return CorpusActors(
            config,
            split,
            clips,
            sharers=len(splits),
            name=f"retrieval-{split}",
            restarts=ALWAYS,
            logs=logs,
        )

    tools: dict[str, ToolRouterHandle] = {}  # of splits that are searched and navigated
    corpora = {split: corpus_of(split) for split in splits}
    retrieval = {split: corpus.retrieval for split, corpus in corpora.items()} | tools
    rewards = [
        RewardWorker.options(**placed(need.reward), max_restarts=ALWAYS).remote(
            environment.rewards(config), logs / f"reward-{i}.log"
        )
        for i in range(need.reward_workers)
    ]

    def make(name: str) -> RolloutWorkerHandle:
        worker: RolloutWorkerHandle = RolloutWorker.options(**placed(need.rollout)).remote(
            config, retrieval, logs / f"{name}.log"
        )
        return worker

    def clips(node: str) -> dict[str, Any]:
        stores = {split: corpus.stores.on(node) for split, corpus in corpora.items()}
        for split, store in stores.items():
            watch.guard(f"clips-{split}-{node[:8]}", "clips", store)
        return stores

    def vacate(node: str) -> None:
        for split, corpus in corpora.items():
            if corpus.stores.end(node):
                watch.release(f"clips-{split}-{node[:8]}")
        watch.leave(node)

    fleet = RolloutFleet(config, make, clips, watch, events.write, vacate)
    try:
        for i, worker in enumerate(rewards):
            watch.guard(f"reward-{i}", "rewards", worker)
        for split, corpus in corpora.items():
            if isinstance(corpus, FilmActors):
                watch.guard(f"tools-{split}", "tools", corpus.retrieval)
            else:
                watch.guard_shards(f"retrieval-{split}", corpus.retrieval)
        for name, router in tools.items():
            watch.guard(name, "tools", router)
        pump = RolloutPump(fleet, rewards, config.rollout.deadline_s)
        others = Workers(corpora, rewards, fleet, pump, watch, events, progress, is_ahead=config.grpo.staleness > 0)
        if wait:
            others.start()
        yield others
    finally:
        fleet.stop()
        watch.stop()
        for actor in rewards:
            ray.kill(actor)
        for router in tools.values():
            ray.kill(router)
        for corpus in corpora.values():
            corpus.stop()
