"""`POST /retrieve` on a real Ray Serve: the published fields, and those that were added."""

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray import serve

from pipelines.serve.retriever import start_retriever
from vsr1.config import Config
from vsr1.formats.dataset import DatasetFolder
from vsr1.model.embedder import Embedder

pytestmark = pytest.mark.usefixtures("ray_cluster")
VIDEOS = 30
EMBEDDER = Path("checkpoints/toy/embedder")


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    """float32 [videos, dim]; row i is video `v<i>`."""
    drawn = np.random.default_rng(0).standard_normal((VIDEOS, Embedder.load(EMBEDDER).dim)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def address(ray_cluster: None, vectors: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = DatasetFolder(tmp_path_factory.mktemp("data"))
    folder.video_embeddings("test").parent.mkdir(parents=True)
    np.save(folder.video_embeddings("test"), vectors)
    folder.docid2row("test").write_text(json.dumps({f"v{row}": row for row in range(VIDEOS)}))
    config = Config.model_validate(
        {"data": {"root": folder.root}, "model": {"embedder": EMBEDDER}, "cluster": {"retrieval": {"cpus": 0}}}
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    start_retriever(config, "test", "127.0.0.1", port)
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def post(address: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(
        f"{address}/retrieve", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_the_published_request(address: str, vectors: np.ndarray) -> None:
    queries = ["a red circle moves left", "a blue ring pulsing"]
    body = {"queries": queries, "topk": 3, "rank_for_ids": ["v3", "v4"], "rank_k": 5}
    status, answer = post(address, body)
    assert status == 200
    assert {"ids", "scores", "rid", "ranks", "rank_for_ids_echo"} <= answer.keys()
    scores = Embedder.load(EMBEDDER).embed_queries(queries) @ vectors.T
    for i, wanted in enumerate(body["rank_for_ids"]):
        order = [f"v{row}" for row in np.argsort(-scores[i])]
        assert answer["ids"][i] == order[:3]
        assert answer["scores"][i] == pytest.approx(sorted(scores[i], reverse=True)[:3], abs=1e-5)
        rank = order.index(wanted) + 1
        assert answer["ranks"][i] == (rank if rank <= 5 else -1)
    assert post(address, body)[1]["rid"] > answer["rid"]
    assert "ranks" not in post(address, {"queries": queries})[1]


def test_vectors_latents_and_exclusions(address: str, vectors: np.ndarray) -> None:
    status, answer = post(
        address, {"vectors": [(2 * vectors[7]).tolist(), vectors[9].tolist()], "exclude_ids": [["v7"], []], "topk": 30}
    )
    assert status == 200
    assert len(answer["ids"][0]) == VIDEOS - 1 and "v7" not in answer["ids"][0]
    assert answer["ids"][1][0] == "v9" and answer["scores"][1][0] == pytest.approx(1.0, abs=1e-5)
    plain = post(address, {"queries": ["a red ring"], "topk": 30})[1]
    soft = (0.5 * np.random.default_rng(1).standard_normal((8, vectors.shape[1]))).tolist()
    refined = post(address, {"queries": ["a red ring", "a red ring"], "latents": [soft, None], "topk": 30})[1]
    assert refined["scores"][0] != plain["scores"][0]
    assert refined["scores"][1] == pytest.approx(plain["scores"][0], abs=1e-5)
    assert plain["index_version"] == refined["index_version"] and plain["missing"] == []


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "give either queries or vectors"),
        ({"queries": ["a"], "vectors": [[1.0]]}, "give either queries or vectors"),
        ({"queries": ["a"], "exclude_ids": []}, "exclude_ids has 0 entries for 1 queries"),
        ({"queries": ["a"], "topk": 0}, "greater than or equal to 1"),
        ({"queries": ["a"], "exclude_ids": [["nope"]]}, "'nope' not in the corpus"),
        ({"vectors": [[1.0, 2.0]]}, "the query vector has shape"),
        ({"queries": ["a"], "latents": [[[1.0], [1.0, 2.0]]]}, "latents of query 0 are not rows of one width"),
        ({"queries": ["a"], "index_version": "x"}, "index version 'x' is not served"),
        ({"querys": ["a"]}, "querys"),
    ],
)
def test_bad_requests_are_named(address: str, body: dict[str, Any], says: str) -> None:
    status, answer = post(address, body)
    assert status == 422
    assert says in json.dumps(answer)
