"""A search over all shards: embed in one call, ask every shard, merge exactly.

Requests that arrive together share one embedding call and one scatter; a second scatter counts ranks where they are
asked for, because a video's score is known only once its shard has answered. A request that is wrong fails alone. A
shard that fails, or an answer later than the deadline, is an error that names the part; there is no partial answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from vsr1.config import RetrievalConfig
from vsr1.retrieval.batching import Batcher
from vsr1.retrieval.corpus import Catalogue
from vsr1.retrieval.index import RankTarget, ShardHits, ShardQuery
from vsr1.retrieval.merge import merge_hits, merge_rank
from vsr1.retrieval.plan import SearchPlan, plan_search
from vsr1.retrieval.request import QueryEmbedder, RetrievalError, SearchRequest, SearchResult, vector_problem

Answer = TypeVar("Answer")


class ShardClient(Protocol):
    """How to reach a shard; a call raises `RetrievalError` with the shard's name if the shard cannot answer."""

    name: str

    async def search(self, queries: list[ShardQuery]) -> list[ShardHits]: ...

    async def count_above(self, targets: list[RankTarget]) -> list[int]: ...


@dataclass(frozen=True)
class _Embedded:
    plan: SearchPlan
    vector: np.ndarray  # [dim] float32


class Searcher:
    """Shard i holds the rows of `catalogue.bounds(len(shards))[i]`.

    Raises:
        RetrievalError: the embedder's vectors are not as wide as the corpus's.
    """

    def __init__(
        self, catalogue: Catalogue, embedder: QueryEmbedder, shards: Sequence[ShardClient], config: RetrievalConfig
    ) -> None:
        if embedder.dim != catalogue.dim:
            raise RetrievalError(
                f"the embedder gives vectors of {embedder.dim} numbers, but the corpus (index {catalogue.version}) "
                f"holds {catalogue.dim}; embed the corpus with this embedder, or set model.embedder to the one used"
            )
        self.catalogue = catalogue
        self.counts = {"requests": 0, "batches": 0, "embed_calls": 0, "embedded": 0, "largest_batch": 0}
        self._embedder = embedder
        self._shards = list(shards)
        self._starts = np.array([first for first, _ in catalogue.bounds(len(shards))])
        self._deadline_s = config.deadline_s
        self._waiting_for: set[str] = set()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="embedder")
        self._batcher: Batcher[SearchPlan, SearchResult] = Batcher(
            self._run, max_batch=config.max_batch, wait_s=config.batch_wait_ms / 1000
        )

    async def search(self, request: SearchRequest) -> SearchResult:
        """Answer one request.

        Raises:
            RetrievalError: a request that does not fit the corpus, a shard that failed, or no answer within
                `retrieval.deadline_s` of its arrival.
        """
        plan = plan_search(request, self.catalogue)
        self.counts["requests"] += 1
        try:
            async with asyncio.timeout(self._deadline_s):
                return await self._batcher.submit(plan)
        except TimeoutError as error:
            waiting = ", ".join(sorted(self._waiting_for)) or "a place in a batch"
            raise RetrievalError(
                f"search got no answer within retrieval.deadline_s={self._deadline_s:g} s; waiting for {waiting}"
            ) from error

    async def _run(self, batch: list[SearchPlan]) -> list[SearchResult | BaseException]:
        self.counts["batches"] += 1
        self.counts["largest_batch"] = max(self.counts["largest_batch"], len(batch))
        outcomes: list[SearchResult | BaseException] = []
        good: list[_Embedded] = []
        vectors = await self._vectors(batch)
        problems = [vector_problem(vector, self.catalogue.dim) for vector in vectors]
        for plan, vector, problem in zip(batch, vectors, problems, strict=True):
            if problem is None:
                good.append(_Embedded(plan, vector))
        answers = iter(await self._answer(good) if good else [])
        for plan, problem in zip(batch, problems, strict=True):
            failed = RetrievalError(f"the embedding of query {plan.request.query!r} {problem}")
            outcomes.append(next(answers) if problem is None else failed)
        return outcomes

    async def _vectors(self, batch: list[SearchPlan]) -> list[np.ndarray]:
        texts = [plan.request.query for plan in batch if plan.request.query is not None]
        soft = [plan.request.soft_tokens for plan in batch if plan.request.query is not None]
        embedded = np.empty((0, self.catalogue.dim), np.float32)
        if texts:
            self.counts["embed_calls"] += 1
            self.counts["embedded"] += len(texts)
            with self._waiting("the query embedder"):
                embedded = await asyncio.get_running_loop().run_in_executor(
                    self._thread, self._embedder.embed_queries, texts, soft
                )
        if embedded.shape != (len(texts), self.catalogue.dim):
            raise RetrievalError(
                f"the embedder gave an array {embedded.shape} for {len(texts)} queries, not "
                f"({len(texts)}, {self.catalogue.dim})"
            )
        fresh = iter(embedded.astype(np.float32))
        return [next(fresh) if plan.vector is None else plan.vector for plan in batch]

    async def _answer(self, searches: list[_Embedded]) -> list[SearchResult]:
        """Two scatters; `parts[shard][search]` is what a shard found for a search."""
        owners = [np.searchsorted(self._starts, item.plan.probes, side="right") - 1 for item in searches]

        def queries(shard: int) -> list[ShardQuery]:
            return [
                ShardQuery(item.vector, item.plan.request.k, item.plan.exclude, item.plan.probes[owner == shard])
                for item, owner in zip(searches, owners, strict=True)
            ]

        parts = await self._scatter(lambda i: self._shards[i].search(queries(i)))
        hits = list(zip(*parts, strict=True))
        scores = [_probe_scores(item.plan, found) for item, found in zip(searches, hits, strict=True)]
        targets = {
            i: RankTarget(item.vector, scores[i][item.plan.rank_row], item.plan.rank_row)
            for i, item in enumerate(searches)
            if item.plan.rank_row is not None
        }
        ranks: dict[int, int] = {}
        if targets:
            counts = await self._scatter(lambda i: self._shards[i].count_above(list(targets.values())))
            ranks = dict(zip(targets, map(merge_rank, zip(*counts, strict=True)), strict=True))
        return [self._result(item, hits[i], scores[i], ranks.get(i)) for i, item in enumerate(searches)]

    def _result(
        self, item: _Embedded, hits: Sequence[ShardHits], scores: dict[int, float], rank: int | None
    ) -> SearchResult:
        ids, request = self.catalogue.video_ids, item.plan.request
        retrieved = [(ids[row], score) for row, score in merge_hits(hits, request.k)]
        due = min(request.k, len(ids) - len(item.plan.exclude))
        if len(retrieved) != due:
            raise RetrievalError(f"the shards gave {len(retrieved)} videos where {due} were due; rebuild the index")
        by_id = {ids[row]: score for row, score in scores.items()}
        wanted = {video_id: by_id[video_id] for video_id in request.scores_of}
        return SearchResult(retrieved, due == 0, rank, wanted, self.catalogue.version, item.vector)

    async def _scatter(self, call: Callable[[int], Coroutine[Any, Any, list[Answer]]]) -> list[list[Answer]]:
        async def ask(i: int) -> list[Answer]:
            name = self._shards[i].name
            try:
                with self._waiting(name):
                    async with asyncio.timeout(self._deadline_s):
                        return await call(i)
            except TimeoutError as error:
                raise RetrievalError(f"{name} gave no answer within {self._deadline_s:g} s") from error

        return list(await asyncio.gather(*(ask(i) for i in range(len(self._shards)))))

    @contextmanager
    def _waiting(self, part: str) -> Iterator[None]:
        self._waiting_for.add(part)
        try:
            yield
        finally:
            self._waiting_for.discard(part)


def _probe_scores(plan: SearchPlan, hits: Sequence[ShardHits]) -> dict[int, float]:
    """Scores by row. Probes are sorted and shards hold consecutive rows, so shard order is probe order."""
    joined = np.concatenate([part.probe_scores for part in hits])
    return dict(zip(plan.probes.tolist(), joined.tolist(), strict=True))
