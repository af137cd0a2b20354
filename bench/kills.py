"""Searches while shards are killed: every answer compared with that of one shard over the whole corpus."""

from __future__ import annotations

import random
import time
from typing import Any

import numpy as np
import ray

from bench.measure import Rounds
from bench.retrieval import K, retrieval_service, unit_vectors
from vsr1.retrieval.index import Ragged, RankTarget, Shard, ShardQueries
from vsr1.retrieval.replicas import HEDGE_SAMPLES
from vsr1.retrieval.request import RetrievalError, SearchRequest, SearchResult

IN_FLIGHT = 32  # searches at one time
KILL_EVERY = 250  # searches


def bench_kills(videos: int, dim: int, searches: int, shards: int, rounds: int) -> dict[str, Any]:
    """Return what became of searches with exclusions and ranks while random replicas were killed, and the recovery.

    Recovery is the median time from a kill to the complete answer of a search sent right after it, without and with a
    second replica.
    """
    rng = np.random.default_rng(0)
    vectors = unit_vectors(rng, videos, dim)
    taken = Rounds()
    with retrieval_service(vectors, shards, 1, object_store_gib=0.5) as service:
        _time_recovery(service, vectors[0], rounds, taken, "without_replica")
    with retrieval_service(vectors, shards, 2, object_store_gib=0.5) as service:
        _time_recovery(service, vectors[0], rounds, taken, "with_replica")
        counts = _search_under_kills(service, Shard("all", np.arange(videos), vectors), searches, rng)
    return {
        "videos": videos,
        "dim": dim,
        "shards": shards,
        **counts,
        "recovery_without_replica_s": taken.median("without_replica"),
        "recovery_with_replica_s": taken.median("with_replica"),
        "answer_without_kill_s": taken.median("undisturbed"),
    }


def _time_recovery(service: Any, query: np.ndarray, rounds: int, taken: Rounds, way: str) -> None:
    """Time a search, and one right after a kill of a shard that it asks; the next round waits until all are back."""
    request = SearchRequest(vector=query, k=K)
    for _ in range(3 * HEDGE_SAMPLES):  # so that the service knows when an answer is late
        ray.get(service.search.remote(request))
    for i in range(rounds):
        with taken.time("undisturbed"):
            ray.get(service.search.remote(request))
        actors = [actor for name, actor in ray.get(service.shards.remote()).items() if not name.endswith("replica 1")]
        ray.kill(actors[i % len(actors)], no_restart=False)
        with taken.time(way):
            ray.get(service.search.remote(request))
        while ray.get(service.describe.remote())["down"]:
            time.sleep(0.05)
        time.sleep(0.5)


def _search_under_kills(service: Any, whole: Shard, searches: int, rng: np.random.Generator) -> dict[str, int]:
    """Count searches, kills, and answers that are errors, shorter than they should be, or wrong."""
    counts = {"searches": 0, "kills": 0, "errors": 0, "short": 0, "wrong": 0}
    pending: dict[Any, SearchRequest] = {}
    chance = random.Random(0)
    sent = 0
    while sent < searches or pending:
        while sent < searches and len(pending) < IN_FLIGHT:
            request = _random_request(len(whole), whole.dim, rng)
            pending[service.search.remote(request)] = request
            sent += 1
            if sent % KILL_EVERY == 0:
                ray.kill(chance.choice(list(ray.get(service.shards.remote()).values())), no_restart=False)
                counts["kills"] += 1
        [answer], _ = ray.wait(list(pending))
        request = pending.pop(answer)
        counts["searches"] += 1
        try:
            result: SearchResult = ray.get(answer)
        except RetrievalError:
            counts["errors"] += 1
            continue
        ranking, rank = _exact(whole, request, result.query_vector)
        counts["short"] += len(result.retrieved) < len(ranking)
        counts["wrong"] += (result.retrieved, result.rank_of) != (ranking, rank)
    return counts


def _random_request(videos: int, dim: int, rng: np.random.Generator) -> SearchRequest:
    excluded = rng.choice(videos, int(rng.integers(0, 20)), replace=False)
    return SearchRequest(
        vector=unit_vectors(rng, 1, dim)[0],
        k=int(rng.integers(1, 40)),
        exclude=[f"{row:07}" for row in excluded],
        rank_of=f"{int(rng.integers(0, videos)):07}",
    )


def _exact(whole: Shard, request: SearchRequest, query: np.ndarray) -> tuple[list[tuple[str, float]], int]:
    """Return the ranking and the rank that a request must get, by one shard over the whole corpus."""
    excluded = np.array([int(video_id) for video_id in request.exclude], np.int64)
    target = np.array([int(request.rank_of or 0)])
    hits = whole.search(ShardQueries(query[None], np.array([request.k]), Ragged.of([excluded]), Ragged.of([target])))
    [above] = whole.count_above([RankTarget(query, float(hits.probe_scores[0]), int(target[0]))])
    ranking = [(f"{row:07}", score) for row, score in zip(hits.rows[0].tolist(), hits.scores.tolist(), strict=True)]
    return ranking, above + 1
