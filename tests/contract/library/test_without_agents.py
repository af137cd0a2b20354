"""`vsr1 retriever`: `POST /retrieve` with the published fields and those that were added, on a corpus without clips."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from pipelines.serve.deploy import retrieval, retriever_config
from vsr1.config import Config
from vsr1.formats.dataset import DatasetFolder
from vsr1.model.embedder import Embedder

from .served import Stage, serving

VIDEOS = 30
EMBEDDER = Path("checkpoints/toy/embedder")


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    """float32 [videos, dim]; row i is video `v<i>`."""
    drawn = np.random.default_rng(0).standard_normal((VIDEOS, Embedder.load(EMBEDDER).dim)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def address(stage: Stage, vectors: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = DatasetFolder(tmp_path_factory.mktemp("data"))
    folder.video_embeddings("test").parent.mkdir(parents=True)
    np.save(folder.video_embeddings("test"), vectors)
    folder.docid2row("test").write_text(json.dumps({f"v{row}": row for row in range(VIDEOS)}))
    config = Config.model_validate(
        {"data": {"root": folder.root}, "model": {"embedder": EMBEDDER}, "cluster": {"retrieval": {"cpus": 0}}}
    )
    stage.close()
    with serving(retriever_config(config, "test"), retrieval) as url:
        yield url


def post(address: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    answer = httpx2.post(f"{address}/retrieve", json=body, timeout=60)
    return answer.status_code, answer.json()


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


def test_a_body_is_as_long_as_its_vectors_make_it(address: str, vectors: np.ndarray) -> None:
    """Longer than `vsr1 serve` takes."""
    rows = np.tile(vectors, (200, 1)).tolist()
    assert len(json.dumps(rows)) > 4 << 20
    status, answer = post(address, {"vectors": rows})
    assert status == 200 and [ids[0] for ids in answer["ids"][:VIDEOS]] == [f"v{row}" for row in range(VIDEOS)]


def test_there_is_no_agent_and_nothing_to_see(address: str) -> None:
    ready = httpx2.get(f"{address}/readyz", timeout=60).json()
    assert (ready["models"], ready["detail"]["test"]["videos"]) == ({}, VIDEOS)
    assert httpx2.get(f"{address}/healthz", timeout=60).json()["status"] == "ok"
    for path in ("/v1/search", "/v1/chat/completions"):
        assert httpx2.post(f"{address}{path}", json={"query": "a"}, timeout=60).status_code == 404
    for path in ("/", "/v1/videos", "/v1/corpora"):
        assert httpx2.get(f"{address}{path}", timeout=60).json()["error"]["code"] == "unknown_route"
