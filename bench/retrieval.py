"""Measures the retrieval service beside one plain FAISS index, and while its shards are killed.

`bench_retrieval` compares the service with `faiss.IndexFlatIP.search` in this process, on the same random unit vectors
in the same run. `bench_kills` compares every answer with that of one shard over the whole corpus.
"""

from __future__ import annotations

import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import ray

from actors.retrieval import RetrievalService
from vsr1.config import Config
from vsr1.formats.dataset import DatasetFolder
from vsr1.retrieval.index import Ragged, RankTarget, Shard, ShardQueries
from vsr1.retrieval.replicas import HEDGE_SAMPLES
from vsr1.retrieval.request import QueryEmbedder, RetrievalError, SearchRequest
from vsr1.settings.parts import ModelConfig

K = 10
SINGLES = 50  # single queries timed
IN_FLIGHT = 32  # searches at one time while shards are killed
KILL_EVERY = 250  # searches


def bench_retrieval(videos: int, dim: int, batch: int, shards: int, rounds: int) -> dict[str, Any]:
    """Throughput at one batch size and latency of single queries: medians, plain FAISS and service in turn.

    Args:
        videos, dim: size of the corpus, float32. batch: queries in one call. shards: of one CPU each.
    """
    rng = np.random.default_rng(0)
    vectors, queries = _unit(rng, videos, dim), _unit(rng, batch, dim)
    plain = faiss.IndexFlatIP(dim)
    plain.add(vectors)
    with tempfile.TemporaryDirectory() as folder:
        service = _start(Path(folder), vectors, shards, 1, object_store_gib=1.3 * vectors.nbytes / 2**30 + 0.3)
        requests = [SearchRequest(vector=query, k=K) for query in queries]
        ways: dict[str, Callable[[], Any]] = {
            "faiss": lambda: plain.search(queries, K),
            "service": lambda: ray.get(service.search_all.remote(requests)),
            "service_one_by_one": lambda: ray.get([service.search.remote(request) for request in requests]),
        }
        batches = _in_turn(ways, rounds)
        singles = _in_turn(
            {
                "faiss": lambda: plain.search(queries[:1], K),
                "service": lambda: ray.get(service.search.remote(requests[0])),
            },
            SINGLES,
        )
        found = [[f"{row:07}" for row in rows] for rows in plain.search(queries, K)[1].tolist()]
        same = [[v for v, _ in result.retrieved] for result in ways["service"]()] == found
        ray.shutdown()
    seconds = {way: statistics.median(times) for way, times in batches.items()}
    p50 = {way: statistics.median(times) for way, times in singles.items()}
    return {
        "videos": videos,
        "dim": dim,
        "batch": batch,
        "shards": shards,
        "same_results": same,
        **{f"{way}_queries_per_s": round(batch / second, 1) for way, second in seconds.items()},
        **{
            f"{way}_to_faiss": round(statistics.median(f / s for f, s in zip(batches["faiss"], times, strict=True)), 3)
            for way, times in batches.items()
            if way != "faiss"
        },
        **{f"{way}_p50_ms": round(1000 * second, 2) for way, second in p50.items()},
    }


def bench_kills(videos: int, dim: int, searches: int, shards: int, rounds: int) -> dict[str, Any]:
    """Searches with exclusions and ranks while a random replica is killed again and again, each answer checked.

    Recovery is the time from a kill to the complete answer of a search sent right after it, without and with a second
    replica; medians.
    """
    rng = np.random.default_rng(0)
    vectors = _unit(rng, videos, dim)
    recovery: dict[int, list[float]] = {}
    undisturbed: list[float] = []
    for replicas in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            service = _start(Path(folder), vectors, shards, replicas, object_store_gib=0.5)
            recovery[replicas] = _recovery_seconds(service, vectors, rounds, undisturbed)
            if replicas == 2:
                counts = _searches_under_kills(service, Shard("all", np.arange(videos), vectors), searches, rng)
            ray.shutdown()
    return {
        "videos": videos,
        "dim": dim,
        "shards": shards,
        **counts,
        "recovery_without_replica_s": round(statistics.median(recovery[1]), 3),
        "recovery_with_replica_s": round(statistics.median(recovery[2]), 3),
        "answer_without_kill_s": round(statistics.median(undisturbed), 4),
    }


def _recovery_seconds(service: Any, vectors: np.ndarray, rounds: int, undisturbed: list[float]) -> list[float]:
    request = SearchRequest(vector=vectors[0], k=K)
    for _ in range(3 * HEDGE_SAMPLES):  # so that the service knows when an answer is late
        ray.get(service.search.remote(request))
    seconds = []
    for i in range(rounds):
        began = time.monotonic()
        ray.get(service.search.remote(request))
        undisturbed.append(time.monotonic() - began)
        actors = [actor for name, actor in ray.get(service.shards.remote()).items() if not name.endswith("replica 1")]
        ray.kill(actors[i % len(actors)], no_restart=False)  # one that the next search asks
        began = time.monotonic()
        ray.get(service.search.remote(request))
        seconds.append(time.monotonic() - began)
        while ray.get(service.describe.remote())["down"]:
            time.sleep(0.05)
        time.sleep(0.5)
    return seconds


def _searches_under_kills(service: Any, whole: Shard, searches: int, rng: np.random.Generator) -> dict[str, int]:
    counts = {"searches": 0, "kills": 0, "errors": 0, "short": 0, "wrong": 0}
    pending: dict[Any, SearchRequest] = {}
    chance = random.Random(0)
    sent = 0
    while sent < searches or pending:
        while sent < searches and len(pending) < IN_FLIGHT:
            excluded = rng.choice(len(whole), int(rng.integers(0, 20)), replace=False)
            request = SearchRequest(
                vector=_unit(rng, 1, whole.dim)[0],
                k=int(rng.integers(1, 40)),
                exclude=[f"{row:07}" for row in excluded],
                rank_of=f"{int(rng.integers(0, len(whole))):07}",
            )
            pending[service.search.remote(request)] = request
            sent += 1
            if sent % KILL_EVERY == 0:
                ray.kill(chance.choice(list(ray.get(service.shards.remote()).values())), no_restart=False)
                counts["kills"] += 1
        [done], _ = ray.wait(list(pending))
        request = pending.pop(done)
        counts["searches"] += 1
        try:
            result = ray.get(done)
        except RetrievalError:
            counts["errors"] += 1
            continue
        gone = np.array([int(video_id) for video_id in request.exclude], np.int64)
        target = np.array([int(request.rank_of or 0)])
        asked = ShardQueries(result.query_vector[None], np.array([request.k]), Ragged.of([gone]), Ragged.of([target]))
        hits = whole.search(asked)
        [above] = whole.count_above([RankTarget(result.query_vector, float(hits.probe_scores[0]), int(target[0]))])
        wanted = [(f"{row:07}", score) for row, score in zip(hits.rows[0].tolist(), hits.scores.tolist(), strict=True)]
        counts["short"] += len(result.retrieved) < len(wanted)
        counts["wrong"] += (result.retrieved, result.rank_of) != (wanted, above + 1)
    return counts


def _start(folder: Path, vectors: np.ndarray, shards: int, replicas: int, object_store_gib: float) -> Any:
    """A service over vectors, video i named by its seven digits, on a Ray of its own."""
    data = DatasetFolder(folder)
    data.video_embeddings("test").parent.mkdir(parents=True)
    np.save(data.video_embeddings("test"), vectors)
    data.docid2row("test").write_text(json.dumps({f"{row:07}": row for row in range(len(vectors))}))
    config = Config.model_validate(
        {
            "data": {"root": folder},
            "retrieval": {"shards": shards, "replicas": replicas},
            "cluster": {"shard": {"cpus": 0, "memory_gib": 0}},
        }
    )
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        logging_level="warning",
        object_store_memory=int(object_store_gib * 2**30),
    )
    service = RetrievalService.options(num_cpus=0).remote(config, "test", _ByVector(vectors.shape[1]))
    ray.get(service.ready.remote())
    return service


class _ByVector:
    """In place of a query embedder: all searches bring their vectors."""

    fingerprint = "none"

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def __call__(self, model: ModelConfig) -> QueryEmbedder:
        return self

    def embed_queries(self, queries: list[str], soft_tokens: list[np.ndarray | None] | None = None) -> np.ndarray:
        raise NotImplementedError("the benchmark searches by vector")


def _in_turn(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way, one after the other in each round; the first round is a warm-up."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for i in range(rounds + 1):
        for way, call in ways.items():
            began = time.perf_counter()
            call()
            if i:
                seconds[way].append(time.perf_counter() - began)
    return seconds


def _unit(rng: np.random.Generator, count: int, dim: int) -> np.ndarray:
    """Random unit vectors, float32 [count, dim]."""
    vectors: np.ndarray = np.asarray(rng.standard_normal((count, dim), np.float32))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors
