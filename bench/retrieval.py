"""The retrieval service beside one plain FAISS index, on the same random unit vectors in the same run."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import ray

from actors.retrieval import RetrievalService
from bench.measure import in_turn
from vsr1.config import Config
from vsr1.formats.dataset import DatasetFolder
from vsr1.retrieval.request import QueryEmbedder, SearchRequest
from vsr1.settings.parts import ModelConfig

K = 10
SINGLES = 50  # rounds in which a single query is timed


def bench_retrieval(videos: int, dim: int, batch: int, shards: int, rounds: int) -> dict[str, Any]:
    """Return throughput at one batch size and latency of single queries: medians, plain FAISS and service in turn.

    Args:
        videos: float32 vectors of `dim` numbers in the corpus.
        batch: queries in one call.
        shards: shard actors, of one thread each.
    """
    rng = np.random.default_rng(0)
    vectors, queries = unit_vectors(rng, videos, dim), unit_vectors(rng, batch, dim)
    plain = faiss.IndexFlatIP(dim)
    plain.add(vectors)
    requests = [SearchRequest(vector=query, k=K) for query in queries]
    with retrieval_service(vectors, shards, 1, object_store_gib=1.3 * vectors.nbytes / 2**30 + 0.3) as service:
        ways: dict[str, Callable[[], Any]] = {
            "faiss": lambda: plain.search(queries, K),
            "service": lambda: ray.get(service.search_all.remote(requests)),
            "service_one_by_one": lambda: ray.get([service.search.remote(request) for request in requests]),
        }
        single: dict[str, Callable[[], Any]] = {
            "faiss": lambda: plain.search(queries[:1], K),
            "service": lambda: ray.get(service.search.remote(requests[0])),
        }
        batches, singles = in_turn(ways, rounds), in_turn(single, SINGLES)
        rankings = [[video for video, _ in result.retrieved] for result in ways["service"]()]
    expected = [[f"{row:07}" for row in rows] for rows in plain.search(queries, K)[1].tolist()]
    return {
        "videos": videos,
        "dim": dim,
        "batch": batch,
        "shards": shards,
        "same_results": rankings == expected,
        **{f"{way}_queries_per_s": batch / batches.median(way) for way in ways},
        **{f"{way}_to_faiss": batches.ratio("faiss", way) for way in ways if way != "faiss"},
        **{f"{way}_p50_ms": 1000 * singles.median(way) for way in single},
    }


@contextmanager
def retrieval_service(vectors: np.ndarray, shards: int, replicas: int, object_store_gib: float) -> Iterator[Any]:
    """Start a Ray and on it a service over vectors, float32 [n, dim], of videos named by seven digits; end both."""
    with tempfile.TemporaryDirectory() as name:
        folder = DatasetFolder(Path(name))
        folder.video_embeddings("test").parent.mkdir(parents=True)
        np.save(folder.video_embeddings("test"), vectors)
        folder.docid2row("test").write_text(json.dumps({f"{row:07}": row for row in range(len(vectors))}))
        config = Config.model_validate(
            {
                "data": {"root": name},
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
        try:
            service = RetrievalService.options(num_cpus=0).remote(config, "test", _ByVector(vectors.shape[1]))
            ray.get(service.ready.remote())
            yield service
        finally:
            ray.shutdown()


def unit_vectors(rng: np.random.Generator, count: int, dim: int) -> np.ndarray:
    """Draw random unit vectors, float32 [count, dim]."""
    vectors: np.ndarray = np.asarray(rng.standard_normal((count, dim), np.float32))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


class _ByVector:
    """Stands in for a query embedder: all searches bring their vectors."""

    fingerprint = "none"

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def __call__(self, model: ModelConfig) -> QueryEmbedder:
        return self

    def embed_queries(self, queries: list[str], soft_tokens: list[np.ndarray | None] | None = None) -> np.ndarray:
        raise NotImplementedError("the benchmark searches by vector")
