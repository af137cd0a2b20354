"""A search over all shards: embed in one call, ask every shard, merge exactly.

Requests that arrive together share one embedding call and one scatter; a second scatter counts ranks where they are
asked for, because a video's score is known only once its shard has answered. A request that is wrong fails alone. While
a shard is missing, a request waits for it up to its deadline and then fails with the shard's name; one that allows a
partial answer gets what the others found, with the names of those that are missing. A search is answered from one
version of the corpus, and the current one changes between searches.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np

from vsr1.batching import AT_ONCE, Batcher
from vsr1.retrieval.corpus import Catalogue
from vsr1.retrieval.index import Ragged, RankTarget, ShardHits, ShardQueries, merge_hits
from vsr1.retrieval.plan import SearchPlan, plan_search
from vsr1.retrieval.replicas import ReplicaClient, ReplicaSet, ShardUnavailableError
from vsr1.retrieval.request import (
    QueryEmbedder,
    RetrievalError,
    SearchRequest,
    SearchResult,
    SearchTimeoutError,
    vector_problem,
)
from vsr1.settings.parts import RetrievalConfig

Answer = TypeVar("Answer")


class ShardClient(ReplicaClient, Protocol):
    """How to reach a replica of a shard, which holds its part of every version that the searcher serves."""

    async def search(self, version: str, queries: ShardQueries) -> ShardHits: ...

    async def count_above(self, version: str, targets: list[RankTarget]) -> list[int]: ...


class EmbedderClient(ReplicaClient, Protocol):
    """How to reach a query embedder: each gives the same texts, in one call, the same vectors to the bit."""

    async def embed_queries(self, queries: list[str], soft_tokens: list[np.ndarray | None]) -> np.ndarray: ...


class OwnEmbedder:
    """The embedder of this process; one thread alone uses it."""

    def __init__(self, embedder: QueryEmbedder) -> None:
        self.name, self._embedder = "the service's own embedder", embedder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="embedder")

    async def run(self, call: Callable[[], Answer]) -> Answer:
        """Return what a call of the embedder gives."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    async def embed_queries(self, queries: list[str], soft_tokens: list[np.ndarray | None]) -> np.ndarray:
        return await self.run(lambda: self._embedder.embed_queries(queries, soft_tokens))

    async def recover(self) -> None:
        await self.run(lambda: None)


class Searcher:
    """Shard i holds the rows of `catalogue.bounds(len(shards))[i]` of each version served.

    Each batch of texts is embedded whole, by the embedder with least to do: this process's own, or one of `embedders`.
    """

    def __init__(
        self,
        embedder: QueryEmbedder,
        shards: Sequence[ReplicaSet[ShardClient]],
        config: RetrievalConfig,
        embedders: Sequence[EmbedderClient] = (),
    ) -> None:
        self.counts = {"requests": 0, "batches": 0, "embed_calls": 0, "embedded": 0, "largest_batch": 0, "partial": 0}
        self._versions: dict[str, Catalogue] = {}
        self._since: dict[str, float] = {}  # when each became the current one
        self._embedder = embedder
        self._shards = list(shards)
        self._deadline_s = config.deadline_s
        self._keep, self._keep_s = config.keep_versions, config.keep_s
        self._embedding = 0  # batches
        self.own = OwnEmbedder(embedder)
        clients: list[EmbedderClient] = [self.own, *embedders]
        self.embedders = ReplicaSet("the query embedders", clients, timeout_s=config.deadline_s, hedges=False)
        at_once, share = AT_ONCE + len(embedders), -(-config.max_batch // len(clients))  # so that a burst is divided
        self._batcher: Batcher[SearchPlan, SearchResult] = Batcher(self._run, max_batch=share, at_once=at_once)

    @property
    def current(self) -> Catalogue:
        """Return what searches without a version see.

        Raises:
            RetrievalError: nothing is served yet.
        """
        if not self._versions:
            raise RetrievalError("the search serves no corpus yet; await ready() first")
        return self._versions[next(reversed(self._versions))]

    @property
    def versions(self) -> list[str]:
        """Return the versions that can be searched, the current one last."""
        return list(self._versions)

    def serve(self, catalogue: Catalogue) -> list[str]:
        """Make a corpus the current one, once every shard holds it, and return the versions that are served no more.

        Raises:
            RetrievalError: the embedder's vectors are not as wide as the corpus's.
        """
        if self._embedder.dim != catalogue.dim:
            raise RetrievalError(
                f"the embedder gives vectors of {self._embedder.dim} numbers, but the corpus (index "
                f"{catalogue.version}) holds {catalogue.dim}; embed the corpus with this embedder, or set "
                "model.embedder to the one used"
            )
        now = time.monotonic()
        self._versions.pop(catalogue.version, None)
        self._versions[catalogue.version] = catalogue
        self._since[catalogue.version] = now
        followers = zip(self.versions[: -self._keep], self.versions[1:], strict=False)
        retired = [version for version, next_one in followers if now - self._since[next_one] >= self._keep_s]
        for version in retired:
            del self._versions[version], self._since[version]
        return retired

    async def search(self, request: SearchRequest) -> SearchResult:
        """Answer one request.

        Raises:
            SearchTimeoutError: no answer within `retrieval.deadline_s` of its arrival.
            RetrievalError: a request that does not fit the corpus, a version that is not served, or a fault of a shard.
        """
        plan = plan_search(request, self._catalogue(request.index_version))
        self.counts["requests"] += 1
        waits_for: list[str] = []
        try:
            async with asyncio.timeout(self._deadline_s):
                while True:
                    result = await self._batcher.submit(plan)
                    if not result.missing:
                        return result
                    if request.partial and len(result.missing) < len(self._shards):
                        self.counts["partial"] += 1
                        return result
                    plan = replace(plan, vector=result.query_vector)
                    missing = [shard for shard in self._shards if shard.name in result.missing]
                    waits_for = [str(shard.unavailable()) for shard in missing]
                    await asyncio.gather(*(shard.recovered.wait() for shard in missing))
                    waits_for = []
        except TimeoutError as error:
            what = "; ".join(waits_for) or ("the query embedder" if self._embedding else "the shards")
            raise SearchTimeoutError(
                f"search got no answer within retrieval.deadline_s={self._deadline_s:g} s; waiting for {what}"
            ) from error

    def _catalogue(self, version: str | None) -> Catalogue:
        if version is None:
            return self.current
        if version not in self._versions:
            raise RetrievalError(
                f"index version {version!r} is not served; there are {', '.join(self._versions)} "
                f"(retrieval.keep_versions={self._keep}); ask for one of them or for none"
            )
        return self._versions[version]

    async def _run(self, batch: list[SearchPlan]) -> list[SearchResult | BaseException]:
        self.counts["batches"] += 1
        self.counts["largest_batch"] = max(self.counts["largest_batch"], len(batch))
        vectors = await self._vectors(batch)
        outcomes: dict[int, SearchResult | BaseException] = {}
        good: dict[str, list[int]] = {}
        for i, (plan, vector) in enumerate(zip(batch, vectors, strict=True)):
            if problem := vector_problem(vector, plan.catalogue.dim):
                outcomes[i] = RetrievalError(f"the embedding of query {plan.request.query!r} {problem}")
            else:
                good.setdefault(plan.catalogue.version, []).append(i)
        for members in good.values():
            answers = await self._answer([batch[i] for i in members], np.stack([vectors[i] for i in members]))
            outcomes.update(zip(members, answers, strict=True))
        return [outcomes[i] for i in range(len(batch))]

    async def _vectors(self, batch: list[SearchPlan]) -> list[np.ndarray]:
        texts = [plan.request for plan in batch if plan.vector is None]
        embedded = np.empty((0, self._embedder.dim), np.float32)
        if texts:
            self.counts["embed_calls"] += 1
            self.counts["embedded"] += len(texts)
            queries = [request.query or "" for request in texts]
            soft_tokens = [request.soft_tokens for request in texts]
            self._embedding += 1
            try:
                embedded = await self.embedders.call(lambda client: client.embed_queries(queries, soft_tokens))
            finally:
                self._embedding -= 1
        fresh = iter(embedded.astype(np.float32))
        return [next(fresh) if plan.vector is None else plan.vector for plan in batch]

    async def _answer(self, plans: list[SearchPlan], vectors: np.ndarray) -> list[SearchResult | BaseException]:
        """Answer plans over one version in two scatters; a shard that is missing gives no part."""
        catalogue = plans[0].catalogue
        bounds = catalogue.bounds(len(self._shards))
        k = np.array([plan.request.k for plan in plans])
        exclude = Ragged.of([plan.exclude for plan in plans])
        probes = Ragged.of([plan.probes for plan in plans])
        shard_of = np.searchsorted([first for first, _ in bounds], probes.values, side="right") - 1

        def find(shard: int, client: ShardClient) -> Coroutine[Any, Any, ShardHits]:
            mine = shard_of == shard
            ends = np.cumsum(np.bincount(probes.owners[mine], minlength=len(plans)))
            queries = ShardQueries(vectors, k, exclude, Ragged(probes.values[mine], ends))
            return client.search(catalogue.version, queries)

        parts, missing = await self._scatter(find)
        if not parts:
            return [SearchResult([], None, {}, catalogue.version, vector, missing) for vector in vectors]
        probe_scores = Ragged(np.full(len(probes.values), np.nan, np.float32), probes.ends)
        for shard, part in parts.items():
            probe_scores.values[shard_of == shard] = part.probe_scores
        scores = [dict(zip(probes[j].tolist(), probe_scores[j].tolist(), strict=True)) for j in range(len(plans))]
        targets = {
            j: RankTarget(vectors[j], scores[j][plan.rank_row], plan.rank_row)
            for j, plan in enumerate(plans)
            if plan.rank_row is not None and not missing
        }
        ranks: dict[int, int] = {}
        if targets:
            wanted = list(targets.values())
            counts, missing = await self._scatter(lambda _, client: client.count_above(catalogue.version, wanted))
            if not missing:
                above = zip(*counts.values(), strict=True)  # of each target how many rows of each shard come before it
                ranks = {j: 1 + sum(rows) for j, rows in zip(targets, above, strict=True)}
        rows, row_scores = merge_hits(list(parts.values()), k)
        best = Ragged(row_scores, rows.ends)
        searched = [bounds[shard] for shard in parts]
        return [
            _result(
                plan, vectors[j], dict(zip(rows[j].tolist(), best[j].tolist(), strict=True)), searched, scores[j],
                ranks.get(j), missing if len(parts) < len(bounds) or j in targets else [],
            )
            for j, plan in enumerate(plans)
        ]  # fmt: skip

    async def _scatter(
        self, ask: Callable[[int, ShardClient], Coroutine[Any, Any, Answer]]
    ) -> tuple[dict[int, Answer], list[str]]:
        """Ask every shard; return the answers by shard, and the names of shards that are missing."""
        calls = [shard.call(partial(ask, i)) for i, shard in enumerate(self._shards)]
        answers: dict[int, Answer] = {}
        missing = []
        for i, answer in enumerate(await asyncio.gather(*calls, return_exceptions=True)):
            if isinstance(answer, ShardUnavailableError):
                missing.append(self._shards[i].name)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                answers[i] = answer
        return answers, missing


def _result(
    plan: SearchPlan,
    vector: np.ndarray,
    retrieved: dict[int, float],
    searched: Sequence[tuple[int, int]],
    scores: dict[int, float],
    rank: int | None,
    missing: list[str],
) -> SearchResult | RetrievalError:
    """Make the answer to a plan; rows and their scores are those of the shards that were `searched`."""
    ids, request = plan.catalogue.video_ids, plan.request
    available = sum(
        end - first - np.count_nonzero((first <= plan.exclude) & (plan.exclude < end)) for first, end in searched
    )
    due = min(request.k, int(available))
    if len(retrieved) != due:
        return RetrievalError(f"the shards gave {len(retrieved)} videos where {due} were due; rebuild the index")
    by_id = {ids[row]: score for row, score in scores.items() if not math.isnan(score)}  # NaN: its shard is missing
    return SearchResult(
        retrieved=[(ids[row], score) for row, score in retrieved.items()],
        rank_of=rank,
        scores={video_id: by_id[video_id] for video_id in request.scores_of if video_id in by_id},
        index_version=plan.catalogue.version,
        query_vector=vector,
        missing=missing,
    )
