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
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np

from vsr1.retrieval.batching import Batcher
from vsr1.retrieval.corpus import Catalogue
from vsr1.retrieval.index import Ragged, RankTarget, ShardHits, ShardQueries, merge_hits, merge_rank
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


@dataclass(frozen=True)
class _Job:
    plan: SearchPlan
    catalogue: Catalogue
    vector: np.ndarray | None  # [dim] float32; None: to be embedded


@dataclass(frozen=True)
class _Incomplete:
    """What the shards that are up gave, and why the others are not; `job` has its vector."""

    job: _Job
    result: SearchResult
    reasons: list[str]


class Searcher:
    """Shard i holds the rows of `catalogue.bounds(len(shards))[i]` of each version served."""

    def __init__(
        self, embedder: QueryEmbedder, shards: Sequence[ReplicaSet[ShardClient]], config: RetrievalConfig
    ) -> None:
        self.counts = {"requests": 0, "batches": 0, "embed_calls": 0, "embedded": 0, "largest_batch": 0, "partial": 0}
        self._versions: dict[str, Catalogue] = {}
        self._since: dict[str, float] = {}  # when each became the current one
        self._embedder = embedder
        self._shards = list(shards)
        self._deadline_s = config.deadline_s
        self._keep, self._keep_s = config.keep_versions, config.keep_s
        self._is_embedding = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="embedder")
        self._batcher: Batcher[_Job, SearchResult | _Incomplete] = Batcher(self._run, max_batch=config.max_batch)

    @property
    def current(self) -> Catalogue:
        """What searches without a version see.

        Raises:
            RetrievalError: nothing is served yet.
        """
        if not self._versions:
            raise RetrievalError("the search serves no corpus yet; await ready() first")
        return self._versions[next(reversed(self._versions))]

    @property
    def versions(self) -> list[str]:
        """Versions that can be searched, the current one last."""
        return list(self._versions)

    def serve(self, catalogue: Catalogue) -> list[str]:
        """Make a corpus the current one, once every shard holds it; returns the versions that are served no more.

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

    async def embedded(self, call: Callable[[], np.ndarray]) -> np.ndarray:
        """What a call of the embedder gives, made in the one thread that may use it."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    async def search(self, request: SearchRequest) -> SearchResult:
        """Answer one request.

        Raises:
            SearchTimeoutError: no answer within `retrieval.deadline_s` of its arrival.
            RetrievalError: a request that does not fit the corpus, a version that is not served, or a fault of a shard.
        """
        catalogue = self._catalogue(request.index_version)
        plan = plan_search(request, catalogue)
        self.counts["requests"] += 1
        job, waits_for = _Job(plan, catalogue, plan.vector), ""
        try:
            async with asyncio.timeout(self._deadline_s):
                while True:
                    outcome = await self._batcher.submit(job)
                    if isinstance(outcome, SearchResult):
                        return outcome
                    if request.partial and len(outcome.result.missing) < len(self._shards):
                        self.counts["partial"] += 1
                        return outcome.result
                    job, waits_for = outcome.job, "; ".join(outcome.reasons)
                    missing = [shard for shard in self._shards if shard.name in outcome.result.missing]
                    await asyncio.gather(*(shard.recovered.wait() for shard in missing))
                    waits_for = ""
        except TimeoutError as error:
            waits_for = waits_for or ("the query embedder" if self._is_embedding else "the shards")
            raise SearchTimeoutError(
                f"search got no answer within retrieval.deadline_s={self._deadline_s:g} s; waiting for {waits_for}"
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

    async def _run(self, batch: list[_Job]) -> list[SearchResult | _Incomplete | BaseException]:
        self.counts["batches"] += 1
        self.counts["largest_batch"] = max(self.counts["largest_batch"], len(batch))
        vectors = await self._vectors(batch)
        outcomes: dict[int, SearchResult | _Incomplete | BaseException] = {}
        good: dict[str, list[int]] = {}
        for i, (job, vector) in enumerate(zip(batch, vectors, strict=True)):
            if problem := vector_problem(vector, job.catalogue.dim):
                outcomes[i] = RetrievalError(f"the embedding of query {job.plan.request.query!r} {problem}")
            else:
                good.setdefault(job.catalogue.version, []).append(i)
        for members in good.values():
            jobs = [replace(batch[i], vector=vectors[i]) for i in members]
            outcomes.update(zip(members, await self._answer(jobs), strict=True))
        return [outcomes[i] for i in range(len(batch))]

    async def _vectors(self, batch: list[_Job]) -> list[np.ndarray]:
        texts = [job.plan.request for job in batch if job.vector is None]
        embedded = np.empty((0, self._embedder.dim), np.float32)
        if texts:
            self.counts["embed_calls"] += 1
            self.counts["embedded"] += len(texts)
            queries = [request.query or "" for request in texts]
            self._is_embedding = True
            try:
                embedded = await asyncio.get_running_loop().run_in_executor(
                    self._thread, self._embedder.embed_queries, queries, [request.soft_tokens for request in texts]
                )
            finally:
                self._is_embedding = False
        if embedded.shape != (len(texts), self._embedder.dim):
            raise RetrievalError(
                f"the embedder gave an array {embedded.shape} for {len(texts)} queries, not "
                f"({len(texts)}, {self._embedder.dim})"
            )
        fresh = iter(embedded.astype(np.float32))
        return [next(fresh) if job.vector is None else job.vector for job in batch]

    async def _answer(self, jobs: list[_Job]) -> list[SearchResult | _Incomplete | BaseException]:
        """Two scatters over one version; a shard that is missing gives no part."""
        catalogue = jobs[0].catalogue
        bounds = catalogue.bounds(len(self._shards))
        vectors = np.stack([_vector(job) for job in jobs])
        k = np.array([job.plan.request.k for job in jobs])
        exclude = Ragged.of([job.plan.exclude for job in jobs])
        probes = Ragged.of([job.plan.probes for job in jobs])
        starts = np.array([first for first, _ in bounds])
        shard_of = np.searchsorted(starts, probes.values, side="right") - 1

        def queries(shard: int) -> ShardQueries:
            mine = shard_of == shard
            ends = np.cumsum(np.bincount(probes.owners[mine], minlength=len(jobs)))
            return ShardQueries(vectors, k, exclude, Ragged(probes.values[mine], ends))

        parts, missing = await self._scatter(lambda i: lambda client: client.search(catalogue.version, queries(i)))
        probe_scores = np.full(len(probes.values), np.nan, np.float32)
        for i, part in parts.items():
            probe_scores[shard_of == i] = part.probe_scores
        scores = [
            dict(zip(job.plan.probes.tolist(), Ragged(probe_scores, probes.ends)[j].tolist(), strict=True))
            for j, job in enumerate(jobs)
        ]
        targets = {
            j: RankTarget(vectors[j], scores[j][job.plan.rank_row], job.plan.rank_row)
            for j, job in enumerate(jobs)
            if job.plan.rank_row is not None and not missing
        }
        ranks: dict[int, int] = {}
        if targets:
            counts, missing = await self._scatter(
                lambda _: lambda client: client.count_above(catalogue.version, list(targets.values()))
            )
            if not missing:
                ranks = dict(zip(targets, map(merge_rank, zip(*counts.values(), strict=True)), strict=True))
        if not parts:
            names = [self._shards[i].name for i in missing]
            none = [SearchResult([], False, None, {}, catalogue.version, vector, names) for vector in vectors]
            return [_Incomplete(job, result, list(missing.values())) for job, result in zip(jobs, none, strict=True)]
        rows, row_scores = merge_hits(list(parts.values()), k)
        found = Ragged(row_scores, rows.ends)
        outcomes: list[SearchResult | _Incomplete | BaseException] = []
        for j, job in enumerate(jobs):
            is_touched = len(parts) < len(bounds) or j in targets
            names = [self._shards[i].name for i in missing] if is_touched else []
            retrieved = list(zip(rows[j].tolist(), found[j].tolist(), strict=True))
            result = _result(job, retrieved, [bounds[i] for i in parts], scores[j], ranks.get(j), names)
            if isinstance(result, SearchResult) and names:
                outcomes.append(_Incomplete(job, result, list(missing.values())))
            else:
                outcomes.append(result)
        return outcomes

    async def _scatter(
        self, ask: Callable[[int], Callable[[ShardClient], Coroutine[Any, Any, Answer]]]
    ) -> tuple[dict[int, Answer], dict[int, str]]:
        """Answers by shard, and the reasons of those that are missing."""
        calls = [shard.call(ask(i)) for i, shard in enumerate(self._shards)]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        given: dict[int, Answer] = {}
        missing: dict[int, str] = {}
        for i, answer in enumerate(answers):
            if isinstance(answer, ShardUnavailableError):
                missing[i] = str(answer)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                given[i] = answer
        return given, missing


def _vector(job: _Job) -> np.ndarray:
    if job.vector is None:
        raise ValueError("a job is searched before it is embedded")
    return job.vector


def _result(
    job: _Job,
    found: list[tuple[int, float]],
    present: Sequence[tuple[int, int]],
    scores: dict[int, float],
    rank: int | None,
    missing: list[str],
) -> SearchResult | RetrievalError:
    ids, request, exclude = job.catalogue.video_ids, job.plan.request, job.plan.exclude
    available = sum(end - first for first, end in present)
    if len(exclude):
        available -= sum(int(((exclude >= first) & (exclude < end)).sum()) for first, end in present)
    due = min(request.k, available)
    if len(found) != due:
        return RetrievalError(f"the shards gave {len(found)} videos where {due} were due; rebuild the index")
    by_id = {ids[row]: score for row, score in scores.items() if not math.isnan(score)}  # NaN: its shard is missing
    wanted = {video_id: by_id[video_id] for video_id in request.scores_of if video_id in by_id}
    retrieved = [(ids[row], score) for row, score in found]
    exhausted = due == 0 and not missing
    return SearchResult(retrieved, exhausted, rank, wanted, job.catalogue.version, _vector(job), missing)
