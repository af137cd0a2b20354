"""The retrieval service on a real Ray: exact answers, batching, and errors instead of short lists when parts die."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.cloudpickle import register_pickle_by_value
from ray.exceptions import RayActorError

from actors.retrieval import RetrievalService
from vsr1.config import Config, ModelConfig
from vsr1.formats.dataset import DatasetFolder
from vsr1.retrieval.request import QueryEmbedder, RetrievalError, SearchRequest

pytestmark = pytest.mark.usefixtures("ray_cluster")
register_pickle_by_value(sys.modules[__name__])  # actors cannot import this file

VIDEOS, DIM = 40, 8


def load_stand_in(model: ModelConfig) -> QueryEmbedder:
    """An embedder without a model: a text seeds a random vector, soft tokens are added, `slow` takes half a second."""

    class SeededEmbedder:
        dim = DIM

        def embed_queries(self, queries: list[str], soft_tokens: list[np.ndarray | None] | None = None) -> np.ndarray:
            if "slow" in queries:
                time.sleep(0.5)
            vectors = np.stack([np.random.default_rng(list(query.encode())).standard_normal(DIM) for query in queries])
            for i, soft in enumerate(soft_tokens or []):
                if soft is not None:
                    vectors[i] += soft.sum(axis=0)
            return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    return SeededEmbedder()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    root = tmp_path_factory.mktemp("data")
    path = DatasetFolder(root).video_embeddings("test")
    path.parent.mkdir(parents=True)
    vectors = np.random.default_rng(0).standard_normal((VIDEOS, DIM))
    np.save(path, (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32))
    ids = {f"video {(7 * row) % VIDEOS:02}": row for row in range(VIDEOS)}  # file order is not id order
    DatasetFolder(root).docid2row("test").write_text(json.dumps(ids), encoding="utf-8")
    return Config.model_validate(
        {
            "data": {"root": root},
            "retrieval": {"shards": 2, "batch_wait_ms": 20, "deadline_s": 20},
            "cluster": {"shard": {"cpus": 0, "memory_gib": 0}},
        }
    )


def start(config: Config, **retrieval: Any) -> Any:
    changed = config.model_copy(update={"retrieval": config.retrieval.model_copy(update=retrieval)})
    service = RetrievalService.options(num_cpus=0).remote(changed, "test", load_stand_in)
    ray.get(service.ready.remote())
    return service


def test_answers_equal_brute_force_and_share_batches(config: Config) -> None:
    service = start(config)
    folder = DatasetFolder(config.data.root)
    stored = np.load(folder.video_embeddings("test"))
    row_of = json.loads(folder.docid2row("test").read_text(encoding="utf-8"))
    first = ray.get(service.describe.remote())
    soft = np.ones((8, DIM), np.float32)
    requests = [
        SearchRequest(f"query {i}", soft if i % 2 else None, k=5, exclude=[f"video {i:02}"], rank_of="video 09")
        for i in range(8)
    ]
    results = ray.get([service.search.remote(request) for request in requests])
    for request, result in zip(requests, results, strict=True):
        scores = {video: float(stored[row] @ result.query_vector) for video, row in row_of.items()}
        order = sorted(scores, key=lambda video: -scores[video])
        assert [video for video, _ in result.retrieved] == [video for video in order if video not in request.exclude][
            :5
        ]
        assert dict(result.retrieved) == pytest.approx(
            {video: scores[video] for video, _ in result.retrieved}, abs=1e-6
        )
        assert result.rank_of == order.index("video 09") + 1
        assert result.index_version == first["index_version"]
    last = ray.get(service.describe.remote())
    assert (last["videos"], last["dim"], last["shards"], last["requests"]) == (VIDEOS, DIM, 2, 8)
    assert last["embed_calls"] < 8
    ray.kill(service)


def test_the_service_answers_while_it_embeds(config: Config) -> None:
    service = start(config, batch_wait_ms=0)
    slow = service.search.remote(SearchRequest("slow"))
    time.sleep(0.1)
    assert ray.get(service.describe.remote())["requests"] == 1
    assert ray.wait([slow], timeout=0)[0] == []
    assert len(ray.get(slow).retrieved) == 10
    ray.kill(service)


def test_a_killed_shard_is_named_by_every_search(config: Config) -> None:
    service = start(config, batch_wait_ms=0)
    shards = ray.get(service.shards.remote())
    assert list(shards) == ["shard 0 (test)", "shard 1 (test)"]
    pending = []
    for i in range(30):
        if i == 10:
            ray.kill(shards["shard 1 (test)"])
        pending.append(service.search.remote(SearchRequest(f"query {i}")))
        time.sleep(0.005)
    failed = 0
    for reference in pending:
        try:
            assert len(ray.get(reference).retrieved) == 10  # whole or not at all
        except RetrievalError as error:
            assert "shard 1 (test) is not available" in str(error)
            failed += 1
    assert failed
    with pytest.raises(RetrievalError, match=r"shard 1 \(test\) is not available \(ActorDiedError\)"):
        ray.get(service.search.remote(SearchRequest("afterwards")))
    ray.kill(service)


def test_a_shard_that_crashes_comes_back_with_its_vectors(config: Config) -> None:
    service = start(config, batch_wait_ms=0)
    before = ray.get(service.search.remote(SearchRequest("a query", k=VIDEOS)))
    shard = ray.get(service.shards.remote())["shard 0 (test)"]
    ray.kill(shard, no_restart=False)
    deadline = time.monotonic() + 30
    while True:
        try:
            after = ray.get(service.search.remote(SearchRequest("a query", k=VIDEOS)))
            break
        except RetrievalError as error:
            assert "shard 0 (test)" in str(error) and time.monotonic() < deadline
            time.sleep(0.1)
    assert after.retrieved == before.retrieved
    ray.kill(service)


def test_a_shard_that_hangs_is_named_at_the_deadline(config: Config) -> None:
    service = start(config, batch_wait_ms=0, deadline_s=1.0)
    shard = ray.get(service.shards.remote())["shard 1 (test)"]
    process = ray.get(shard.__ray_call__.remote(lambda _: os.getpid()))
    os.kill(process, signal.SIGSTOP)
    try:
        with pytest.raises(RetrievalError, match=r"deadline_s=1 s; waiting for shard 1 \(test\)"):
            ray.get(service.search.remote(SearchRequest("a query")))
    finally:
        os.kill(process, signal.SIGCONT)
    ray.kill(service)


def test_a_killed_service_is_an_error_at_the_caller(config: Config) -> None:
    service = start(config)
    pending = [service.search.remote(SearchRequest("slow")) for _ in range(3)]
    time.sleep(0.1)
    ray.kill(service)
    for reference in pending:
        with pytest.raises(RayActorError):
            ray.get(reference)
    with pytest.raises(RayActorError):
        ray.get(service.search.remote(SearchRequest("afterwards")))


def test_errors_of_a_request_reach_the_caller(config: Config) -> None:
    service = start(config)
    with pytest.raises(RetrievalError, match="rank_of: 'nope' not in the corpus of 40 videos"):
        ray.get(service.search.remote(SearchRequest("a", rank_of="nope")))
    ray.kill(service)


def test_a_service_that_cannot_start_says_why(config: Config, tmp_path: Path) -> None:
    empty = config.model_copy(update={"data": config.data.model_copy(update={"root": tmp_path})})
    service = RetrievalService.options(num_cpus=0).remote(empty, "test", load_stand_in)
    with pytest.raises(RayActorError, match=r"segment_embeds\.npy does not exist; build the dataset"):
        ray.get(service.search.remote(SearchRequest("a")))
    with pytest.raises(RayActorError, match=r"retrieval\.shards=41 is more than the 40 videos"):
        start(config, shards=41)
