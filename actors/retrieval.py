"""The retrieval service and its shards: `vsr1.retrieval` behind actors.

The service owns its shards, which end with it. A replica that dies is started again by Ray and gets from the service,
out of the object store, the parts of all versions that are served; meanwhile its shard's other replicas answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import ray
from ray.exceptions import RayActorError

from actors.logs import log_to
from vsr1.config import Config, ModelConfig, RetrievalConfig
from vsr1.formats.dataset import DatasetFolder
from vsr1.retrieval.corpus import Catalogue
from vsr1.retrieval.index import RankTarget, Shard, ShardHits, ShardQueries
from vsr1.retrieval.replicas import ReplicaSet, ShardUnavailableError
from vsr1.retrieval.request import QueryEmbedder, RetrievalError, SearchRequest, SearchResult
from vsr1.retrieval.searcher import Searcher, ShardClient
from vsr1.retrieval.snapshot import Snapshot, changed, open_current, set_current, write_snapshot

RECOVERY_PAUSE_S = 0.1  # between attempts to reach a replica that is down


class IndexShardActor:
    """One replica of a shard: its part of each version that was loaded."""

    def __init__(self, name: str, config: RetrievalConfig, threads: int, gpu: bool, log: Path | None = None) -> None:
        log_to(log)
        faiss.omp_set_num_threads(threads)
        self._name, self._config, self._gpu = name, config, gpu
        self._versions: dict[str, Shard] = {}

    def load(self, version: str, rows: np.ndarray, vectors: np.ndarray) -> None:
        """Take `rows` int64 [n] and `vectors` float32 [n, dim] of a version; nothing happens if it is there."""
        if version not in self._versions:
            self._versions[version] = Shard(
                self._name,
                rows,
                vectors,
                factory=self._config.index,
                search_params=self._config.index_params,
                gpu=self._gpu,
            )

    def unload(self, version: str) -> None:
        self._versions.pop(version, None)

    def search(self, version: str, queries: ShardQueries) -> ShardHits:
        return self._version(version).search(queries)

    def count_above(self, version: str, targets: list[RankTarget]) -> list[int]:
        return self._version(version).count_above(targets)

    def _version(self, version: str) -> Shard:
        if version not in self._versions:  # started again, and not loaded yet
            raise ShardUnavailableError(self._name, "loading")
        return self._versions[version]


# Typed as Any: the stubs that Ray ships type a handle as the plain class, whose methods have no `.remote`.
IndexShard: Any = ray.remote(IndexShardActor)


class RemoteShard:
    """A `ShardClient` that sends its calls to an `IndexShard`; `parts` are what it must hold, by version."""

    def __init__(self, name: str, actor: Any, parts: dict[str, tuple[np.ndarray, ray.ObjectRef]]) -> None:
        self.name, self.actor, self._parts = name, actor, parts

    async def search(self, version: str, queries: ShardQueries) -> ShardHits:
        return await self._answer(self.actor.search.remote(version, queries))

    async def count_above(self, version: str, targets: list[RankTarget]) -> list[int]:
        return await self._answer(self.actor.count_above.remote(version, targets))

    async def load(self) -> None:
        """Bring the replica what it does not hold yet."""
        for version, (rows, vectors) in list(self._parts.items()):
            await self._answer(self.actor.load.remote(version, rows, vectors))

    async def recover(self) -> None:
        while True:
            try:
                return await self.load()
            except ShardUnavailableError:
                await asyncio.sleep(RECOVERY_PAUSE_S)

    async def _answer(self, reference: Any) -> Any:
        try:
            return await reference
        except RayActorError as error:
            raise ShardUnavailableError(self.name, type(error).__name__) from error


def load_embedder(model: ModelConfig) -> QueryEmbedder:
    """The embedder that the configuration names."""
    from vsr1.model.embedder import Embedder  # here, because it loads torch: shards and callers do without

    return Embedder.load(model.embedder, device=model.device, dtype=model.dtype)


class RetrievalServiceActor:
    """Searches one split. If the corpus or the embedder cannot be used, it fails at start and each call says why."""

    def __init__(
        self,
        config: Config,
        split: str,
        load: Callable[[ModelConfig], QueryEmbedder] = load_embedder,
        logs: Path | None = None,
    ) -> None:
        """
        Args:
            config: `data.root` holds the dataset; `retrieval` and `cluster.shard` give the shards and their resources.
            load: loads the query embedder, inside this actor.
            logs: folder for the logs of this actor and its shards.

        Raises:
            RetrievalError: corpus or snapshot missing or malformed, more shards than videos, or embedder and corpus of
                different width or fingerprint.
        """
        log_to(logs and logs / f"retrieval-{split}.log")
        self._folder, self._split = DatasetFolder(config.data.root), split
        snapshot = open_current(self._folder, split)
        self._embedder = load(config.model)
        if snapshot.embedder not in (None, self._embedder.fingerprint):
            raise RetrievalError(
                f"index {snapshot.catalogue.version} of split {split!r} was made with embedder {snapshot.embedder}, "
                f"but queries are embedded with {self._embedder.fingerprint}: set model.embedder to the one used, or "
                "build the dataset again"
            )
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
