"""What the stages of a replay are computed from: the run's own data and weights, on the CPU in float32, without Ray.

A source that is gone raises `NotChecked` with its name; nothing else takes its place.
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from actors.clips import ClipReader
from actors.tools import FilmClips
from pipelines.evaluation.films import KeptFilms
from pipelines.evaluation.replay.differences import NotChecked
from pipelines.stage.tasks import training_tasks
from vsr1.config import Config
from vsr1.environments.registry import environment_of
from vsr1.episode.trajectory import Trajectory
from vsr1.formats.dataset import DatasetFolder
from vsr1.model.checkpoint import load_policy
from vsr1.model.embedder import Embedder
from vsr1.model.policy import VideoSearchPolicy
from vsr1.model.processor import ClipProcessor
from vsr1.retrieval.corpus import Corpus, open_corpus
from vsr1.retrieval.request import RetrievalError
from vsr1.rl.example_loss import ExampleLoss
from vsr1.rl.refined import load_vectors
from vsr1.runs.scalars import read_scalars
from vsr1.search.record import SearchTask
from vsr1.settings.parts import AgentConfig
from vsr1.video.clips import Clip, ClipError, ClipFolder, ClipReference

GREEDY_TEMPERATURE = 1.0  # the engine reports log-probs of plain logits when it decodes greedily


class Sources:
    """What one run was made of; the last weights, corpus and clips that were asked for stay in memory.

    Args:
        config: of the run.
        agent: that played.
        folder: of the run.
        is_training: rollouts of Stage 2, not an evaluation.
    """

    def __init__(self, config: Config, agent: AgentConfig, folder: Path, *, is_training: bool) -> None:
        self.config, self.agent, self.folder, self.is_training = config, agent, folder, is_training
        self.split = "train" if is_training else config.eval.split
        self._data = DatasetFolder(config.data.root)
        environment = environment_of(config)
        queries = [] if is_training else environment.evaluation_queries(config, self.split)
        tasks = training_tasks(config) if is_training else [query.task for query in queries]
        self._tasks = {task.id.prompt: task for task in tasks}
        self.top_k = config.retrieval.top_k if is_training else config.eval.top_k
        self._read = lru_cache(64)(self._reader().read)
        self.corpus = lru_cache(1)(self._load_corpus)
        self.scalars = lru_cache(1)(self._load_scalars)
        self._loss_from = lru_cache(1)(self._load_loss)

    @cached_property
    def processor(self) -> ClipProcessor:
        """Return what makes prompts and clips into the policy's input."""
        return ClipProcessor(self.config.model.policy)

    @cached_property
    def embedder(self) -> Embedder:
        """Return what makes queries into vectors."""
        return Embedder.load(self.config.model.embedder)

    @cached_property
    def films(self) -> KeptFilms:
        """Return the long films of the dataset, and what tools have said of them."""
        return KeptFilms(self.config)

    def query_of(self, trajectory: Trajectory[Any, Any]) -> str:
        """Return what names an episode's query or question in its split."""
        prompt, task = trajectory.id.prompt, trajectory.task
        if type(task) is SearchTask:
            return task.query_id  # a file of version 0.1 has other prompt ids
        return prompt.split("/", maxsplit=2)[-1] if self.is_training else prompt

    def task(self, query_id: str) -> Any:
        """Return what an episode of a query was about."""
        if query_id not in self._tasks:
            raise NotChecked(f"{self._data.root} holds no query {query_id!r} of split {self.split!r}")
        return self._tasks[query_id]

    def content_hash(self, video: str) -> str:
        """Return the hash of a video's clip as it is now."""
        return self.shown(video).content_hash

    def clip(self, reference: ClipReference) -> Clip:
        """Return the clip that was shown."""
        if self.content_hash(reference.video_id) != reference.content_hash:
            raise NotChecked(f"the clip of {reference.video_id} is not the one that was shown")
        return self.shown(reference.video_id)

    def shown(self, video: str) -> Clip:
        """Return a clip as it is now."""
        try:
            return self._read(video)
        except ClipError as error:
            raise NotChecked(str(error)) from error

    def loss(self, version: int) -> ExampleLoss:
        """Return the loss of Stage 2 under the weights of a version; in an evaluation all are `model.policy`."""
        if not self.is_training or version == 0:
            return self._loss_from(self.config.model.policy)
        checkpoint = self.folder / "checkpoints" / f"step-{version}"
        if not checkpoint.is_dir():
            raise NotChecked(f"the weights of version {version} were not kept (grpo.save_every)")
        return self._loss_from(checkpoint)

    def _reader(self) -> ClipReader:
        """Return what reads all that an episode can show."""
        environment, clips = environment_of(self.config), self._data.clips(self.split)
        if not environment.has_corpus:
            return self.films
        folder = ClipFolder(clips, self.config.data.timestamps)
        return FilmClips(folder, self.films) if environment.has_films else folder

    def _load_scalars(self, step: int) -> dict[str, float]:
        """Return what the run logged of a step of Stage 2; of a step that was done twice, the later values."""
        path = self.folder / "scalars.jsonl"
        rows = read_scalars(path) if path.is_file() else []
        return {row["name"]: row["value"] for row in rows if (row["stage"], row["step"]) == ("grpo", step)}

    def _load_corpus(self, version: str) -> Corpus:
        """Return the corpus of the split, if it is that of a version."""
        try:
            corpus = open_corpus(self._data, self.split)
        except RetrievalError as error:
            raise NotChecked(str(error)) from error
        if corpus.catalogue.version != version:
            raise NotChecked(f"{self._data.root} holds index {corpus.catalogue.version}, index {version} is gone")
        return corpus

    def _load_loss(self, policy: Path) -> ExampleLoss:
        config, environment = self.config, environment_of(self.config)
        is_compared = self.is_training and config.grpo.objective.kl != "none"
        return ExampleLoss(
            config.grpo,
            self.agent,
            self._load_policy(policy),
            self._load_policy(config.model.policy) if is_compared else None,
            self.embedder,
            load_vectors(self._data, self.split) if environment.has_corpus else environment.vectors(config),
            self.processor,
            self.clip,
            temperature=config.rollout.temperature if self.is_training else GREEDY_TEMPERATURE,
        )

    def _load_policy(self, folder: Path) -> VideoSearchPolicy:
        return load_policy(folder, device="cpu", dtype="float32", allow_bin=self.config.model.allow_bin)
