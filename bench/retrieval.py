"""The retrieval service beside one plain FAISS index, on the same random unit vectors in one run; also on a GPU."""

from __future__ import annotations

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import ray

from actors.retrieval import RetrievalService
from actors.shards import faiss_of
from bench.measure import in_turn
from pipelines.machine.resources import MachineError
from vsr1.config import Config
from vsr1.formats.dataset import DatasetFolder
from vsr1.retrieval.request import QueryEmbedder, SearchRequest
from vsr1.settings.parts import ModelConfig, ShardConfig

K = 10
SINGLES = 50  # rounds in which a single query is timed
GPU_SHARE = 0.4  # of the shard, and of plain FAISS


def bench_retrieval(
    videos: int,
    dim: int,
    batch: int,
    shards: int,
    rounds: int,
    singles: int = SINGLES,
    gpu: bool = False,
    faiss_folder: Path | None = None,
) -> dict[str, Any]:
    """Return throughput at one batch size and latency of single queries: medians, plain FAISS and service in turn.

    Args:
        videos: float32 vectors of `dim` numbers in the corpus.
        batch: queries in one call.
        shards: shard actors, of one thread each.
        singles: rounds in which a single query is timed.
        gpu: also with one shard on a GPU, and plain FAISS on the same GPU, whose seconds are those of its own process.
        faiss_folder: of the FAISS of both (`retrieval.shard.faiss`).
    """
    rng = np.random.default_rng(0)
    vectors, queries = unit_vectors(rng, videos, dim), unit_vectors(rng, batch, dim)
    plain = faiss.IndexFlatIP(dim)
    plain.add(vectors)
    requests = [SearchRequest(vector=query, k=K) for query in queries]
    copies = 3 if gpu else 1  # of the vectors: of each service, and on their way to plain FAISS on the GPU
    with corpus_on_ray(vectors, object_store_gib=1.3 * copies * vectors.nbytes / 2**30 + 0.3) as start:
        services = {"service": start(shards, 1)}
        ways: dict[str, Callable[[], Any]] = {"faiss": lambda: plain.search(queries, K)}
        single: dict[str, Callable[[], Any]] = {"faiss": lambda: plain.search(queries[:1], K)}
        if gpu:
            if not ray.cluster_resources().get("GPU"):
                raise MachineError("--gpu was given, and Ray sees no GPU here", "see `nvidia-smi`, or leave it out")
            own = ShardConfig(faiss=faiss_folder)
            services["gpu_service"] = start(1, 1, GPU_SHARE, own)
            on_gpu = PlainOnGpu.options(num_gpus=GPU_SHARE, **faiss_of(own)).remote(ray.put(vectors))
            ways["gpu_faiss"] = lambda: ray.get(on_gpu.search.remote(queries))
            single["gpu_faiss"] = lambda: ray.get(on_gpu.search.remote(queries[:1]))
        ray.get([service.ready.remote() for service in services.values()])
        for name, service in services.items():
            ways[name] = partial(_search_all, service, requests)
            single[name] = partial(_search_each, service, requests[:1])
        ways["service_one_by_one"] = partial(_search_each, services["service"], requests)
        batches, one = in_turn(ways, rounds), in_turn(single, singles)
        rankings = {name: [[video for video, _ in result.retrieved] for result in ways[name]()] for name in services}
        inside = ray.get(on_gpu.seconds.remote()) if gpu else {}
    expected = [[f"{row:07}" for row in rows] for rows in plain.search(queries, K)[1].tolist()]
    if gpu:
        batches.seconds["gpu_faiss"], one.seconds["gpu_faiss"] = inside[batch][-rounds:], inside[1][-singles:]
    beside = {name: "gpu_faiss" if name.startswith("gpu") else "faiss" for name in ways if "service" in name}
    return {
        "videos": videos,
        "dim": dim,
        "batch": batch,
        "shards": shards,
        "same_results": all(ranking == expected for ranking in rankings.values()),
        **{f"{way}_queries_per_s": batch / batches.median(way) for way in ways},
        **{f"{way}_to_faiss": batches.ratio(plain_way, way) for way, plain_way in beside.items()},
        **{f"{way}_p50_ms": 1000 * one.median(way) for way in single},
    }


class PlainOnGpuActor:
    """Plain FAISS on a GPU, in a process of its own with a FAISS that can; it times its searches itself."""

    def __init__(self, vectors: np.ndarray) -> None:
        self._resources = faiss.StandardGpuResources()
        self._index = faiss.GpuIndexFlatIP(self._resources, vectors.shape[1])
        self._index.add(vectors)
        self._seconds: dict[int, list[float]] = defaultdict(list)

    def search(self, queries: np.ndarray) -> None:
        began = time.perf_counter()
        self._index.search(queries, K)
        self._seconds[len(queries)].append(time.perf_counter() - began)

    def seconds(self) -> dict[int, list[float]]:
        """Return the seconds of all searches, by the number of their queries."""
        return dict(self._seconds)


PlainOnGpu: Any = ray.remote(num_cpus=0)(PlainOnGpuActor)  # Any: the stubs of Ray give a handle no `.options`


def _search_all(service: Any, requests: list[SearchRequest]) -> Any:
    return ray.get(service.search_all.remote(requests))


def _search_each(service: Any, requests: list[SearchRequest]) -> Any:
    return ray.get([service.search.remote(request) for request in requests])


@contextmanager
def retrieval_service(vectors: np.ndarray, shards: int, replicas: int, object_store_gib: float) -> Iterator[Any]:
    """Start a Ray and on it a service over vectors, float32 [n, dim], of videos named by seven digits; end both."""
    with corpus_on_ray(vectors, object_store_gib) as start:
        service = start(shards, replicas)
        ray.get(service.ready.remote())
        yield service


@contextmanager
def corpus_on_ray(vectors: np.ndarray, object_store_gib: float) -> Iterator[Callable[..., Any]]:
    """Start a Ray; yield what starts a service over vectors there, by its shards, replicas, GPU share and FAISS."""
    with tempfile.TemporaryDirectory() as name:
        folder = DatasetFolder(Path(name))
        folder.video_embeddings("test").parent.mkdir(parents=True)
        np.save(folder.video_embeddings("test"), vectors)
        folder.docid2row("test").write_text(json.dumps({f"{row:07}": row for row in range(len(vectors))}))

        def start(shards: int, replicas: int, gpus: float = 0.0, own: ShardConfig | None = None) -> Any:
            retrieval = {"shards": shards, "replicas": replicas, "shard": (own or ShardConfig()).model_dump()}
            need = {"cpus": 0, "gpus": gpus, "memory_gib": 0}
            config = Config.model_validate({"data": {"root": name}, "retrieval": retrieval, "cluster": {"shard": need}})
            return RetrievalService.options(num_cpus=0).remote(config, "test", _ByVector(vectors.shape[1]))

        ray.init(
            address="local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level="warning",
            object_store_memory=int(object_store_gib * 2**30),
        )
        try:
            yield start
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
