"""What the stages of a replay are computed from: the run's own data and weights, on the CPU in float32, without Ray.

A source that is gone raises `NotChecked` with its name; nothing else takes its place.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch

from pipelines.evaluation.replay.differences import NotChecked
from pipelines.stage.tasks import evaluation_queries, training_tasks
from vsr1.config import Config
from vsr1.episode.trajectory import Segment
from vsr1.formats.dataset import DatasetFolder
from vsr1.model.checkpoint import load_policy
from vsr1.model.embedder import Embedder
from vsr1.model.policy import VideoSearchPolicy
from vsr1.model.processor import ClipProcessor
from vsr1.retrieval.corpus import Corpus, open_corpus
from vsr1.retrieval.request import RetrievalError
from vsr1.rl.example_loss import ExampleLoss, VideoVectors
from vsr1.search.environment import SearchTask
from vsr1.settings.parts import AgentConfig
from vsr1.video.clips import Clip, ClipError, ClipFolder

GREEDY_TEMPERATURE = 1.0  # the engine reports log-probs of plain logits when it decodes greedily


class Sources:
    """Of one run; the last weights, corpus and clips that were asked for are kept.

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
        tasks = training_tasks(config) if is_training else [q.task for q in evaluation_queries(config, self.split)]
        self._tasks: dict[str, SearchTask] = {task.query_id: task for task in tasks}
        self.top_k = config.retrieval.top_k if is_training else config.eval.top_k
        self.processor = ClipProcessor(config.model.policy)
        self.embedder = Embedder.load(config.model.embedder)
        self._read = lru_cache(64)(ClipFolder(self._data.clips(self.split), config.data.timestamps).read)
        self.corpus = lru_cache(1)(self._load_corpus)
        self._loss_from = lru_cache(1)(self._load_loss)

    def task(self, query_id: str) -> SearchTask:
        if query_id not in self._tasks:
            raise NotChecked(f"{self._data.root} holds no query {query_id!r} of split {self.split!r}")
        return self._tasks[query_id]

    def clip_hash(self, segment: Segment) -> str:
        """Of the clip as it is now."""
        try:
            return self._read(segment.video_id).content_hash
        except ClipError as error:
            raise NotChecked(str(error)) from error

    def clip(self, segment: Segment) -> Clip:
        """The clip that was shown."""
        if self.clip_hash(segment) != segment.clip_hash:
            raise NotChecked(f"the clip of turn {segment.turn}, {segment.video_id}, is not the one that was shown")
        return self._read(segment.video_id)

    def loss(self, version: int) -> ExampleLoss:
        """The loss of Stage 2 under the weights of a version; all weights of an evaluation are `model.policy`."""
        if not self.is_training or version == 0:
            return self._loss_from(self.config.model.policy)
        kept = self.folder / "checkpoints" / f"step-{version}"
        if not kept.is_dir():
            raise NotChecked(f"the weights of version {version} were not kept (grpo.save_every)")
        return self._loss_from(kept)

    def _load_corpus(self, version: str) -> Corpus:
        """The corpus of the split, if it is that of a version."""
        try:
            corpus = open_corpus(self._data, self.split)
        except RetrievalError as error:
            raise NotChecked(str(error)) from error
        if corpus.catalogue.version != version:
            raise NotChecked(f"{self._data.root} holds index {corpus.catalogue.version}, index {version} is gone")
        return corpus

    def _load_loss(self, policy: Path) -> ExampleLoss:
        config = self.config
        is_compared = self.is_training and config.grpo.objective.kl != "none"
        corpus = open_corpus(self._data, self.split)
        rows = {video: row for row, video in enumerate(corpus.catalogue.video_ids)}
        return ExampleLoss(
            config.grpo,
            self.agent,
            self._load_policy(policy),
            self._load_policy(config.model.policy) if is_compared else None,
            self.embedder,
            VideoVectors(torch.from_numpy(corpus.vectors), rows),
            self.processor,
            temperature=config.rollout.temperature if self.is_training else GREEDY_TEMPERATURE,
        )

    def _load_policy(self, folder: Path) -> VideoSearchPolicy:
        return load_policy(folder, device="cpu", dtype="float32", allow_bin=self.config.model.allow_bin)
