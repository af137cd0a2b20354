"""The retrieval service and its shards: `vsr1.retrieval` behind actors.

The service owns its shards, which end with it. A replica that dies is started again by Ray and gets from the service,
out of the object store, the parts of all versions that are served; meanwhile its shard's other replicas answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray

from actors.logs import log_to
from actors.shards import IndexShard, RemoteShard
from vsr1.config import Config
from vsr1.formats.dataset import DatasetFolder
from vsr1.retrieval.added import AddedFolder
from vsr1.retrieval.corpus import Catalogue
from vsr1.retrieval.replicas import ReplicaSet
from vsr1.retrieval.request import ClipEmbedder, RetrievalError, SearchRequest, SearchResult, vector_problem
from vsr1.retrieval.searcher import Searcher, ShardClient
from vsr1.retrieval.snapshot import Snapshot, changed, open_current, set_current, with_added, write_snapshot
from vsr1.settings.parts import ModelConfig
from vsr1.video.clips import Clip


def load_embedder(model: ModelConfig) -> ClipEmbedder:
    """The embedder that the configuration names."""
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
            added: videos that belong to the corpus too, see `refresh`; then `change` is not for use.

        Raises:
            RetrievalError: corpus or snapshot missing or malformed, more shards than videos, or embedder and corpus of
                different width or fingerprint.
        """
        log_to(logs and logs / f"retrieval-{split}.log")
        self._folder, self._split, self._added = DatasetFolder(config.data.root), split, added
        snapshot = open_current(self._folder, split)
        self._embedder = load(config.model)
        if snapshot.embedder not in (None, self._embedder.fingerprint):
            raise RetrievalError(
                f"index {snapshot.catalogue.version} of split {split!r} was made with embedder {snapshot.embedder}, "
                f"but queries are embedded with {self._embedder.fingerprint}: set model.embedder to the one used, or "
                "build the dataset again"
            )
        if added:
            catalogue, vectors = with_added(snapshot, added, self._embedder.fingerprint)
            snapshot = replace(snapshot, catalogue=catalogue, vectors=vectors)
        retrieval, need = config.retrieval, config.cluster.shard
        snapshot.catalogue.bounds(retrieval.shards)
        start = IndexShard.options(
            num_cpus=need.cpus, num_gpus=need.gpus, memory=int(need.memory_gib * 2**30), max_restarts=-1
        )
        self._parts: list[dict[str, tuple[np.ndarray, ray.ObjectRef]]] = [{} for _ in range(retrieval.shards)]
        self._replicas: list[list[RemoteShard]] = []
        sets: list[ReplicaSet[ShardClient]] = []
        for i, parts in enumerate(self._parts):
            shard = f"shard {i} ({split})"
            names = [shard] if retrieval.replicas == 1 else [f"{shard} replica {r}" for r in range(retrieval.replicas)]
            threads = max(1, int(need.cpus))
            members = []
            for r, name in enumerate(names):
                log = logs and logs / f"shard-{split}-{i}-{r}.log"
                actor = start.remote(shard, retrieval, threads, need.gpus > 0, log)
                members.append(RemoteShard(name, actor, parts))
            self._replicas.append(members)
            sets.append(ReplicaSet(shard, members, timeout_s=retrieval.shard_timeout_s))
        self._sets = sets
        self._searcher = Searcher(self._embedder, sets, retrieval)
        self._first: Snapshot | None = snapshot
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
                await self._load(self._first.catalogue, self._first.vectors)
                await asyncio.gather(*(replica.recover() for replica in self._all_replicas()))
                self._serve(self._first.catalogue)
                self._first = None

    async def change(self, add: dict[str, np.ndarray], remove: list[str]) -> str:
        """Add or replace videos by their unit vectors, float32 [dim], remove others; the new version is current then.

        Searches go on; those that name the version before still see it. What was written before a failure or a kill is
        never half there: the current version is the old one or the new one.

        Returns:
            the new version.

        Raises:
            RetrievalError: ids or vectors that do not fit, fewer than two videos left, or a disk that is full.
        """
        await self.ready()
        async with self._changing:
            return await self._change(add, remove)

    async def _change(self, add: dict[str, np.ndarray], remove: list[str]) -> str:
        before = open_current(self._folder, self._split)
        catalogue, vectors = changed(before.catalogue, before.vectors, add, remove)
        catalogue.bounds(len(self._sets))
        folder = self._folder.index(self._split).parent
        write_snapshot(folder, catalogue, vectors, embedder=self._embedder.fingerprint, source=before.source)
        await self._load(catalogue, vectors)
        set_current(folder, catalogue.version)
        self._serve(catalogue)
        return catalogue.version

    async def refresh(self) -> str:
        """Read the built corpus and the added videos again, as at a start, and make what is there now current.

        Searches go on as in `change`.

        Returns:
            the current version.

        Raises:
            RetrievalError: as `with_added`, or more shards than videos.
        """
        await self.ready()
        async with self._changing:
            catalogue, vectors = await asyncio.to_thread(self._read)
            if catalogue.version != self._searcher.current.version:
                catalogue.bounds(len(self._sets))
                if catalogue.version not in self._searcher.versions:
                    await self._load(catalogue, vectors)
                self._serve(catalogue)
            return catalogue.version

    def _read(self) -> tuple[Catalogue, np.ndarray]:
        if self._added is None:
            raise RetrievalError("this service was started without a folder of added videos; use `change`")
        return with_added(open_current(self._folder, self._split), self._added, self._embedder.fingerprint)

    async def embed_clip(self, clip: Clip) -> tuple[np.ndarray, str]:
        """Vector of a clip, float32 [dim], of length 1, and the fingerprint of the embedder; queries wait meanwhile.

        Raises:
            RetrievalError: the embedder gives a vector that has no direction.
        """
        [vector] = await self._searcher.embedded(lambda: self._embedder.embed_clips([clip]))
        if problem := vector_problem(vector, self._embedder.dim):
            raise RetrievalError(f"the embedding of video {clip.video_id!r} {problem}; check the embedder checkpoint")
        return vector.astype(np.float32), self._embedder.fingerprint

    async def _load(self, catalogue: Catalogue, vectors: np.ndarray) -> None:
        """Bring a version to one replica of each shard at least; the others get it before they answer again."""
        version = catalogue.version
        for parts, (first, end) in zip(self._parts, catalogue.bounds(len(self._sets)), strict=True):
            parts[version] = np.arange(first, end), ray.put(vectors[first:end])
        try:
            await asyncio.gather(*(_first_of([replica.recover() for replica in shard]) for shard in self._replicas))
        except RetrievalError:
            for parts in self._parts:
                del parts[version]
            raise

    def _serve(self, catalogue: Catalogue) -> None:
        for retired in self._searcher.serve(catalogue):
            for parts in self._parts:
                del parts[retired]
            for replica in self._all_replicas():
                replica.actor.unload.remote(retired)

    def _all_replicas(self) -> list[RemoteShard]:
        return [replica for shard in self._replicas for replica in shard]

    async def describe(self) -> dict[str, Any]:
        """Versions, videos, dim, shards, replicas that are down, and counts of requests and batches so far."""
        await self.ready()
        catalogue = self._searcher.current
        return {
            "index_version": catalogue.version,
            "versions": self._searcher.versions,
            "videos": len(catalogue),
            "dim": catalogue.dim,
            "shards": len(self._sets),
            "replicas": len(self._all_replicas()),
            "down": [name for shard in self._sets for name in shard.down],
            "hedged": sum(shard.hedged for shard in self._sets),
            **self._searcher.counts,
        }

    async def shards(self) -> dict[str, Any]:
        """The replicas' actors by name, for health checks and tests."""
        return {replica.name: replica.actor for replica in self._all_replicas()}


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

RetrievalService: Any = ray.remote(RetrievalServiceActor)
