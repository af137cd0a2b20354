"""The retrieval service, its shards and further query embedders: `vsr1.retrieval` behind actors.

The service owns them, and they end with it. A replica that dies is started again by Ray and gets from the service,
out of the object store, the parts of all versions that are served; meanwhile its shard's other replicas answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import ray

from actors.embedders import EmbedderHandle, FurtherEmbedder, RemoteEmbedder
from actors.handles import Remote
from actors.logs import log_to
from actors.places import placed
from actors.shards import IndexShard, RemoteShard, ShardHandle, faiss_of
from vsr1.config import Config
from vsr1.formats.dataset import DatasetFolder
from vsr1.retrieval.added import AddedFolder, with_added
from vsr1.retrieval.corpus import Corpus, open_corpus
from vsr1.retrieval.replicas import ReplicaSet
from vsr1.retrieval.request import ClipEmbedder, RetrievalError, SearchRequest, SearchResult, vector_problem
from vsr1.retrieval.searcher import Searcher, ShardClient
from vsr1.settings.parts import ModelConfig
from vsr1.video.clips import Clip
from vsr1.video.container import VideoError
from vsr1.video.faults import work_on


def load_embedder(model: ModelConfig) -> ClipEmbedder:
    """Load the embedder that the configuration names."""
    from vsr1.model.embedder import Embedder  # here, because it loads torch: shards and callers do without

    return Embedder.load(model.embedder, device=model.device, dtype=model.dtype)


class RetrievalServiceActor:
    """Searches one split. If the corpus or the embedder cannot be used, it fails at start and each call says why."""

    def __init__(
        self,
        config: Config,
        split: str,
        load: Callable[[ModelConfig], ClipEmbedder] = load_embedder,
        logs: Path | None = None,
        added: AddedFolder | None = None,
    ) -> None:
        """
        Args:
            config: `data.root` holds the dataset; `retrieval` and `cluster.shard` give the shards and their resources.
            load: loads the query embedder, inside this actor.
            logs: folder for the logs of this actor and its shards.
            added: videos that belong to the corpus too, see `refresh`.

        Raises:
            RetrievalError: the corpus is missing or malformed, there are more shards than videos, or embedder and
                corpus differ in width or fingerprint.
        """
        log_to(logs and logs / f"retrieval-{split}.log")
        self._folder, self._split, self._added = DatasetFolder(config.data.root), split, added
        self._embedder = load(config.model)
        corpus, retrieval, need = self._read(), config.retrieval, config.cluster.shard
        corpus.catalogue.bounds(retrieval.shards)
        start = IndexShard.options(**placed(need), **faiss_of(retrieval.shard), max_restarts=-1)
        self._parts: list[dict[str, tuple[np.ndarray, ray.ObjectRef]]] = [{} for _ in range(retrieval.shards)]
        self._replicas: list[list[RemoteShard]] = []
        self._sets: list[ReplicaSet[ShardClient]] = []
        for i, parts in enumerate(self._parts):
            shard = f"shard {i} ({split})"
            members = []
            for r in range(retrieval.replicas):
                name = shard if retrieval.replicas == 1 else f"{shard} replica {r}"
                log = logs and logs / f"shard-{split}-{i}-{r}.log"
                actor = start.remote(shard, retrieval, max(1, int(need.cpus)), need.gpus > 0, log)
                members.append(RemoteShard(name, actor, parts))
            self._replicas.append(members)
            self._sets.append(ReplicaSet(shard, members, timeout_s=retrieval.shard_timeout_s))
        again = FurtherEmbedder.options(**placed(config.cluster.retrieval), max_restarts=-1)
        self._embedders: list[RemoteEmbedder] = []
        for i in range(1, retrieval.embedders):
            log = logs and logs / f"embedder-{split}-{i}.log"
            actor = again.remote(config.model, load, log)
            self._embedders.append(RemoteEmbedder(f"embedder {i} ({split})", actor, self._embedder.fingerprint))
        self._searcher = Searcher(self._embedder, self._sets, retrieval, self._embedders)
        self._first: Corpus | None = corpus
        self._changing = asyncio.Lock()

    async def search(self, request: SearchRequest) -> SearchResult:
        """Answer one request; requests that arrive together are embedded and searched together.

        Raises:
            RetrievalError: a request that does not fit the corpus, a version that is not served, a shard that failed,
                or no answer in time.
        """
        await self.ready()
        return await self._searcher.search(request)

    async def search_all(self, requests: list[SearchRequest]) -> list[SearchResult]:
        """Answer many requests in one call; errors as `search`, of the first that fails."""
        await self.ready()
        return list(await asyncio.gather(*(self._searcher.search(request) for request in requests)))

    async def ready(self) -> None:
        """Wait until every replica holds the corpus; await it once, or the first search pays for the start.

        Raises:
            RetrievalError: a vector that no index can hold, or an index type that FAISS does not know.
        """
        if self._first is None:
            return
        async with self._changing:
            if self._first is not None:
                await self._load(self._first)
                await asyncio.gather(*(one.recover() for one in self._members()))
                self._serve(self._first)
                self._first = None

    async def refresh(self) -> str:
        """Read the built corpus and the added videos again, as at a start, and make what is there now current.

        Searches go on; those that name the version before still see it.

        Returns:
            the current version.

        Raises:
            RetrievalError: as at a start.
        """
        await self.ready()
        async with self._changing:
            corpus = await asyncio.to_thread(self._read)
            version = corpus.catalogue.version
            if version != self._searcher.current.version:
                if version not in self._searcher.versions:
                    await self._load(corpus)
                self._serve(corpus)
            return version

    def _read(self) -> Corpus:
        """Read what is to be searched, which must have been embedded with the embedder of the queries."""
        corpus, fingerprint = open_corpus(self._folder, self._split), self._embedder.fingerprint
        if corpus.embedder not in (None, fingerprint):
            raise RetrievalError(
                f"index {corpus.catalogue.version} of split {self._split!r} was made with embedder {corpus.embedder}, "
                f"but queries are embedded with {fingerprint}: set model.embedder to the one used, or build the "
                "dataset again"
            )
        return with_added(corpus, self._added, fingerprint) if self._added else corpus

    async def embed_clip(self, clip: Clip) -> tuple[np.ndarray, str]:
        """Return the vector of a clip, float32 [dim], of length 1, and the embedder's fingerprint; queries wait for it.

        Raises:
            RetrievalError: the embedder refuses the clip, or gives a vector that has no direction.
        """
        try:
            with work_on(Path(clip.video_id), "embed"):
                [vector] = await self._searcher.own.run(lambda: self._embedder.embed_clips([clip]))
        except VideoError as error:
            raise RetrievalError(f"video {clip.video_id!r} cannot be embedded: {error.reason}") from error
        if problem := vector_problem(vector, self._embedder.dim):
            raise RetrievalError(f"the embedding of video {clip.video_id!r} {problem}; check the embedder checkpoint")
        return vector.astype(np.float32), self._embedder.fingerprint

    async def _load(self, corpus: Corpus) -> None:
        """Bring a version to one replica of each shard at least; the others get it before they answer again."""
        version = corpus.catalogue.version
        for parts, (first, end) in zip(self._parts, corpus.catalogue.bounds(len(self._sets)), strict=True):
            parts[version] = np.arange(first, end), ray.put(corpus.vectors[first:end])
        try:
            await asyncio.gather(*(_first_of([replica.recover() for replica in shard]) for shard in self._replicas))
        except RetrievalError:
            for parts in self._parts:
                del parts[version]
            raise

    def _serve(self, corpus: Corpus) -> None:
        for retired in self._searcher.serve(corpus.catalogue):
            for parts in self._parts:
                del parts[retired]
            for replica in self._all_replicas():
                replica.actor.unload.remote(retired)

    def _members(self) -> list[RemoteShard | RemoteEmbedder]:
        return [*self._all_replicas(), *self._embedders]

    def _all_replicas(self) -> list[RemoteShard]:
        return [replica for shard in self._replicas for replica in shard]

    async def describe(self) -> dict[str, Any]:
        """Return versions, videos, dim, shards, embedders, those that are down, and counts of requests and batches."""
        await self.ready()
        catalogue = self._searcher.current
        return {
            "index_version": catalogue.version,
            "versions": self._searcher.versions,
            "videos": len(catalogue),
            "dim": catalogue.dim,
            "shards": len(self._sets),
            "replicas": len(self._all_replicas()),
            "embedders": 1 + len(self._embedders),
            "down": [*(name for shard in self._sets for name in shard.down), *self._searcher.embedders.down],
            "hedged": sum(shard.hedged for shard in self._sets),
            **self._searcher.counts,
        }

    async def shards(self) -> dict[str, ShardHandle | EmbedderHandle]:
        """Return the actors of this service, replicas and embedders, by name, for health checks and tests."""
        return {one.name: one.actor for one in self._members()}


async def _first_of(calls: list[Coroutine[Any, Any, None]]) -> None:
    """Wait for one; the rest go on by themselves."""
    tasks = [asyncio.create_task(call) for call in calls]
    done, rest = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    _BACKGROUND.update(rest)
    for task in rest:
        task.add_done_callback(_BACKGROUND.discard)
    for task in done:
        task.result()


_BACKGROUND: set[asyncio.Task[None]] = set()  # asyncio itself keeps no task alive


class RetrievalHandle(Protocol):
    """The handle of a `RetrievalService`."""

    search: Remote[[SearchRequest], SearchResult]
    search_all: Remote[[list[SearchRequest]], list[SearchResult]]
    ready: Remote[[], None]
    refresh: Remote[[], str]
    embed_clip: Remote[[Clip], tuple[np.ndarray, str]]
    describe: Remote[[], dict[str, Any]]
    shards: Remote[[], dict[str, ShardHandle | EmbedderHandle]]


RetrievalService: Any = ray.remote(RetrievalServiceActor)
