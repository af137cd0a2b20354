"""The retrieval service and its shards: `vsr1.retrieval` behind actors.

The service owns its shards, which end with it. A shard that dies is started again by Ray from the vectors the service
keeps in the object store; the searches it left unanswered fail with its name, and so does every search until then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import faiss
import numpy as np
import ray
from ray.exceptions import RayActorError

from vsr1.config import Config, ModelConfig
from vsr1.formats.dataset import DatasetFolder
from vsr1.retrieval.corpus import load_corpus
from vsr1.retrieval.index import RankTarget, Shard, ShardHits, ShardQuery
from vsr1.retrieval.request import QueryEmbedder, RetrievalError, SearchRequest, SearchResult
from vsr1.retrieval.searcher import Searcher

Answer = TypeVar("Answer")


class IndexShardActor:
    """Some rows of the corpus: `rows` int64 [n], `vectors` float32 [n, dim]."""

    def __init__(self, name: str, rows: np.ndarray, vectors: np.ndarray) -> None:
        faiss.omp_set_num_threads(1)  # the shards are the parallelism
        self._shard = Shard(name, vectors.shape[1])
        self._shard.add(rows, vectors)

    def search(self, queries: list[ShardQuery]) -> list[ShardHits]:
        return [self._shard.search(query) for query in queries]

    def count_above(self, targets: list[RankTarget]) -> list[int]:
        return [self._shard.count_above(target) for target in targets]


# Typed as Any: the stubs that Ray ships type a handle as the plain class, whose methods have no `.remote`.
IndexShard: Any = ray.remote(IndexShardActor)


class RemoteShard:
    """A `ShardClient` that sends its calls to an `IndexShard`."""

    def __init__(self, name: str, actor: Any) -> None:
        self.name = name
        self.actor = actor

    async def ready(self) -> None:
        await self._answer(self.actor.__ray_ready__.remote())

    async def search(self, queries: list[ShardQuery]) -> list[ShardHits]:
        return await self._answer(self.actor.search.remote(queries))

    async def count_above(self, targets: list[RankTarget]) -> list[int]:
        return await self._answer(self.actor.count_above.remote(targets))

    async def _answer(self, reference: Any) -> Any:
        try:
            return await reference
        except RayActorError as error:
            raise RetrievalError(f"{self.name} is not available ({type(error).__name__}): {error}") from error


def load_embedder(model: ModelConfig) -> QueryEmbedder:
    """The embedder that the configuration names."""
    from vsr1.model.embedder import Embedder  # here, because it loads torch: shards and callers do without

    return Embedder.load(model.embedder, device=model.device, dtype=model.dtype)


class RetrievalServiceActor:
    """Searches one split. If the corpus or the embedder cannot be used, it fails at start and each call says why."""

    def __init__(
        self, config: Config, split: str, load: Callable[[ModelConfig], QueryEmbedder] = load_embedder
    ) -> None:
        """
        Args:
            config: `data.root` holds the dataset; `retrieval` and `cluster.shard` give the shards and their resources.
            load: loads the query embedder, inside this actor.

        Raises:
            RetrievalError: corpus files missing or malformed, fewer than two videos, or embedder and corpus of
                different width.
        """
        folder = DatasetFolder(config.data.root)
        catalogue, vectors = load_corpus(folder.video_embeddings(split), folder.docid2row(split))
        need = config.cluster.shard
        start = IndexShard.options(
            num_cpus=need.cpus, num_gpus=need.gpus, memory=int(need.memory_gib * 2**30), max_restarts=-1
        )
        embedder = load(config.model)
        self._shards = []
        for i, (first, end) in enumerate(catalogue.bounds(config.retrieval.shards)):
            name = f"shard {i} ({split})"
            actor = start.remote(name, np.arange(first, end), ray.put(vectors[first:end]))
            self._shards.append(RemoteShard(name, actor))
        self._searcher = Searcher(catalogue, embedder, self._shards, config.retrieval)

    async def search(self, request: SearchRequest) -> SearchResult:
        """Answer one request in full; requests that arrive together are embedded and searched together.

        Raises:
            RetrievalError: a request that does not fit the corpus, a shard that failed, or no answer in time.
        """
        return await self._searcher.search(request)

    async def ready(self) -> None:
        """Wait until every shard has started; await it once, or the first search pays for the start from its deadline.

        Raises:
            RetrievalError: a shard that died.
        """
        for shard in self._shards:
            await shard.ready()

    async def describe(self) -> dict[str, Any]:
        """Index version, videos, dim, shards, and counts of requests, batches and embedding calls so far."""
        catalogue = self._searcher.catalogue
        return {
            "index_version": catalogue.version,
            "videos": len(catalogue),
            "dim": catalogue.dim,
            "shards": len(self._shards),
            **self._searcher.counts,
        }

    async def shards(self) -> dict[str, Any]:
        """The shard actors by name, for health checks and tests."""
        return {shard.name: shard.actor for shard in self._shards}


RetrievalService: Any = ray.remote(RetrievalServiceActor)
