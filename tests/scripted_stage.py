"""Stage 2 without models: rollout workers whose replies follow from seeds and weights, a learner that hashes batches.

What lies between is real: episodes, rewards, pump, ledger, journal, states and the loop. The learner's weights are a
digest of all that it was given so far, to the bit and in its order, so two runs end with the same ones only if they
trained the same.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import ray
from pretended_ray import PretendedRay

from actors.rewards import RewardWorkerActor
from actors.rollout import RolloutWorkerActor
from pipelines.stage.fleet import Member
from pipelines.stage.progress import QUIET
from pipelines.stage.pump import RolloutPump
from pipelines.stage.workers import Workers
from pipelines.train.grpo import Loop, begun
from pipelines.train.rollouts import GroupRollouts
from vsr1.config import Config
from vsr1.environments.registry import environment_of
from vsr1.episode.environment import Prompt
from vsr1.episode.sample import SampleId
from vsr1.ledger import Frame, Ledger
from vsr1.retrieval.request import RetrievalError, SearchRequest, SearchResult
from vsr1.rl.success import SuccessEstimates
from vsr1.runs.events import EVENTS, EventLog
from vsr1.runs.folder import TRAINING_LOG
from vsr1.runs.state import StateFolder
from vsr1.runs.trajectories import read_log
from vsr1.search.record import SearchTask, SearchTrajectory
from vsr1.video.clips import Clip

VIDEOS = [f"v{i}" for i in range(12)]
WIDTH = 4
POISON = "kills its worker"
REJECTS = "<think> no </think> <answer>not_matched</answer> <REFINE>"
ACCEPTS = "<think> yes </think> <answer>matched</answer> <start>1.0</start> <end>{end}</end> <REFINE>"


class WorkerKilledError(BaseException):
    """The end of a worker's process."""


@dataclass
class ScriptedReply:
    prompt_token_ids: list[int]
    token_ids: list[int]
    logprobs: list[float]
    text: str
    finish_reason: str
    latents: np.ndarray | None
    soft_tokens: np.ndarray | None
    seed: int
    weight_version: int


class ScriptedEngine:
    """A reply follows from its seed and the version of the weights."""

    def __init__(self) -> None:
        self.version = 0

    async def generate(self, prompt: Prompt, *, seed: int, latents: int, **rest: Any) -> ScriptedReply:
        version = self.version
        if any(POISON in part for part in prompt.parts if isinstance(part, str)):
            raise WorkerKilledError
        draw = random.Random(f"{seed} {version}")
        tokens = [draw.randrange(1000) for _ in range(draw.randrange(3, 9))]
        rejects = draw.random() < 0.6
        noise = np.array([draw.gauss(0, 1) for _ in range(latents * WIDTH)], np.float32).reshape(latents, WIDTH)
        return ScriptedReply(
            prompt_token_ids=[len(str(part)) for part in prompt.parts if isinstance(part, str)],
            token_ids=tokens,
            logprobs=[float(np.float32(-draw.random())) for _ in tokens],
            text=REJECTS if rejects else ACCEPTS.format(end=f"{2 + draw.random():.2f}"),
            finish_reason="refined" if rejects else "stop",
            latents=noise if rejects else None,
            soft_tokens=noise * 2 if rejects else None,
            seed=seed,
            weight_version=version,
        )


class ScriptedWorker(RolloutWorkerActor):
    """The rollout worker with that engine, and a corpus whose rankings follow from the query.

    Args:
        index: version of the corpus; requests for another are refused.
    """

    def __init__(self, config: Config, index: str = "i1") -> None:
        self._config, self._index = config, index
        self._engine: Any = ScriptedEngine()

    async def set_version(self, version: int) -> None:
        self._engine.version = version

    async def set_index(self, index: str) -> None:
        self._index = index

    async def _search(self, split: str, request: SearchRequest) -> SearchResult:
        version = request.index_version or self._index
        if version not in ("i1", self._index) or (version == "i1" and self._index.endswith("only")):
            raise RetrievalError(f"version {version!r} is not served")
        soft = b"" if request.soft_tokens is None else request.soft_tokens.tobytes()
        draw = random.Random(hashlib.sha256(f"{request.query} {version}".encode() + soft).digest())
        scores = {video: draw.random() for video in VIDEOS}
        ranked = sorted(VIDEOS, key=lambda video: -scores[video])
        left = [(video, scores[video]) for video in ranked if video not in request.exclude][: request.k]
        rank = ranked.index(request.rank_of) + 1 if request.rank_of else None
        wanted = {video: scores[video] for video in request.scores_of}
        return SearchResult(left, rank, wanted, version, np.ones(WIDTH, np.float32))

    async def _clip(self, split: str, video_id: str) -> Clip:
        return Clip.make(video_id, np.full((4, 2, 2, 3), VIDEOS.index(video_id), np.uint8), np.arange(4.0))


class ScriptedStream(Iterator[SearchTask]):
    def __init__(self, position: int = 0, poison: int = -1) -> None:
        self.position, self._poison = position, poison
        self.success = SuccessEstimates()

    def learned(self, trajectories: Sequence[SearchTrajectory]) -> None:
        for one in trajectories:
            self.success.observe(one.id.prompt.split("/")[1], 1, 1)

    def __next__(self) -> SearchTask:
        self.position += 1
        return self.task(f"0/{self.position - 1}/q{self.position - 1}")

    def task(self, prompt: str) -> SearchTask:
        number = int(prompt.split("/")[1])
        query = POISON if number == self._poison else f"query {number}"
        right = VIDEOS[number % len(VIDEOS)]
        return SearchTask(SampleId(prompt), f"q{number}", query, right, (1.0, 3.0), 4.0, [VIDEOS[-1]])


class ScriptedLearner:
    """Weights are a digest; `fails_at` is a step whose state cannot be written, as on a full disk."""

    ranks = 1

    def __init__(self, seconds: float = 0.0) -> None:
        self.weights, self.seconds, self.fails_at = "start", seconds, -1
        self.steps = 0

    def step(self, examples: list[Any], rate: float) -> dict[str, float]:
        time.sleep(self.seconds)
        digest = hashlib.sha256(self.weights.encode())
        for example in examples:
            digest.update(repr((example.prompt_ids, example.response_ids, example.clips, rate)).encode())
            digest.update(repr((example.sampled.logprobs, example.sampled.advantage)).encode())
            if example.target is not None:
                digest.update(example.target.latents.tobytes())
        self.weights, self.steps = digest.hexdigest(), self.steps + 1
        return {"tokens": float(sum(len(example.response_ids) for example in examples))}

    def prefetch(self, references: Any) -> None:
        list(references)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "weights").write_text(self.weights)

    def save_state(self, folder: Path) -> None:
        if self.steps == self.fails_at:
            raise OSError(28, "No space left on device", str(folder / "optimiser"))
        (folder / "weights").write_text(f"{self.weights} {self.steps}")

    def load_state(self, folder: Path) -> None:
        self.weights, steps = (folder / "weights").read_text().split()
        self.steps = int(steps)


class Members:
    """A fleet of scripted workers; a member that died is started again, with the weights of the last push.

    Args:
        start: starts the actor of a worker.
        worker: makes a worker of the configuration.
    """

    def __init__(
        self,
        start: Callable[[ScriptedWorker], Any],
        config: Config,
        count: int = 2,
        at_once: int = 4,
        worker: Callable[[Config], ScriptedWorker] = ScriptedWorker,
    ) -> None:
        self._start_actor, self._config, self._worker = start, config, worker
        self._at_once, self.version, self.deaths = at_once, 0, 0
        self.members = [Member(f"rollout-{i}", self._start()) for i in range(count)]
        self.load: dict[Member, int] = dict.fromkeys(self.members, 0)

    def _start(self) -> Any:
        handle = self._start_actor(self._worker(self._config))
        handle.set_version.remote(self.version)
        return handle

    def pick(self) -> Member | None:
        member = min(self.members, key=lambda member: self.load[member])
        if self.load[member] >= self._at_once:
            return None
        self.load[member] += 1
        return member

    def played(self, member: Member, *, died: bool = False, failed: bool = False) -> None:
        self.load[member] -= 1
        if died and member in self.members:
            self.deaths += 1
            new = Member(member.name, self._start())
            self.load[new] = 0
            self.members[self.members.index(member)] = new

    def serving(self) -> list[str]:
        return [member.name for member in self.members]

    def tick(self) -> None:
        pass

    def kill(self, name: str) -> None:
        ray.kill(next(member.handle for member in self.members if member.name == name))

    def push(self, version: int) -> None:
        self.version = version
        for member in self.members:
            member.handle.set_version.remote(version)

    def forget(self) -> None:
        """Take back all samples: their driver is gone."""
        self.load = dict.fromkeys(self.members, 0)


class ScriptedWorkers(Workers):
    def push(self, learners: Any, version: int) -> None:
        cast(Any, self.fleet).push(version)


@dataclass
class Stage:
    """Runs of one folder, one after another; `on_frame` is called with each frame before it is written, or after."""

    config: Config
    fleet: Members
    rewards: list[Any]
    on_frame: Callable[[Frame], None] = lambda frame: None
    after_frame: Callable[[Frame], None] = lambda frame: None
    learner: ScriptedLearner = field(default_factory=ScriptedLearner)
    poison: int = -1
    learner_seconds: float = 0.0
    stream: Callable[[int], Any] | None = None  # of prompts from a position on; None: of searches

    def run(self) -> str:
        """Take the steps that are left; return the weights."""
        config = self.config
        self.learner.weights, self.learner.steps = "start", 0
        states = StateFolder(config.run_dir / "state" / "grpo", config.grpo.state_limit)
        self.events = EventLog(config.run_dir / EVENTS)
        self.fleet.forget()
        pump = RolloutPump(self.fleet, self.rewards, config.rollout.deadline_s)
        others = ScriptedWorkers({}, self.rewards, cast(Any, self.fleet), pump, cast(Any, None), self.events, QUIET)
        settings = config.grpo.model_dump(mode="json")
        with begun(config, states, settings, self.events) as (commits, saved, log):
            if saved.folder:
                self.learner.load_state(saved.folder)
            self.fleet.push(saved.weights)

            def write(frame: Frame) -> None:
                self.on_frame(frame)
                commits.write(frame)
                self.after_frame(frame)

            ledger = Ledger(write, saved.past, config.grpo.poison_deaths)
            stream = self.stream(saved.position) if self.stream else ScriptedStream(saved.position, self.poison)
            learner: Any = self.learner
            rollouts = GroupRollouts(others, cast(Any, stream), ledger, config, saved, self.events)
            self.ledger = ledger
            loop = Loop(config, others, learner, rollouts, commits, log, self.events, QUIET)
            try:
                loop.run(saved)
            finally:
                loop._thread.shutdown()  # a killed process would end its threads; this one lets them end
        return self.learner.weights

    @property
    def trained(self) -> list[tuple[str, int, int]]:
        """Return prompt, sample and step of all that was trained, sorted."""
        logged = read_log(self.config.run_dir / TRAINING_LOG)
        return sorted((one.trajectory.id.prompt, one.trajectory.id.sample, one.step) for one in logged)


def stage_config(run_dir: Path, **grpo: Any) -> Config:
    """Return settings of a run with 12 groups of 2 in all, by default."""
    return Config.model_validate(
        {
            "run_dir": run_dir,
            "agent": {"latents": 2, "max_turns": 3},
            "retrieval": {"top_k": 3},
            "grpo": {
                "learner": {"ranks": 1},
                "steps": 4,
                "prompts_per_step": 3,
                "group_size": 2,
                "state_every": 2,
                "latents": {"sigma": 0.05},
                **grpo,
            },
        }
    )


def environment_stage(cluster: PretendedRay, config: Config, worker: Any, stream: Callable[[int], Any]) -> Stage:
    """Return a stage of the environment of its settings, with the rewards of it.

    Args:
        worker: of its rollouts.
        stream: makes its prompts, from a position on.
    """
    rewards = [cluster.actor(RewardWorkerActor(environment_of(config).rewards(config)))]
    return Stage(config, Members(cluster.actor, config, worker=worker), rewards, stream=stream)
