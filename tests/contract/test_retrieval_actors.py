"""The retrieval service on a real Ray: exact answers, batching, and errors instead of short lists when parts die."""

import json
import os
import shutil
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

from actors.clips import ClipStore
from actors.embedders import FurtherEmbedder
from actors.retrieval import RetrievalHandle, RetrievalService, load_embedder
from actors.rewards import RewardWorker
from actors.shards import IndexShard
from actors.tools import Captioner, ToolRouter
from vsr1.config import Config
from vsr1.formats.dataset import DatasetFolder
from vsr1.retrieval.added import AddedFolder, AddedVideo
from vsr1.retrieval.request import QueryEmbedder, RetrievalError, SearchRequest
from vsr1.settings.parts import ModelConfig, RetrievalConfig

from .faiss_folder import write_faiss

pytestmark = pytest.mark.usefixtures("ray_cluster")
register_pickle_by_value(sys.modules[__name__])  # actors cannot import this file

VIDEOS, DIM = 40, 8


def load_stand_in(model: ModelConfig) -> QueryEmbedder:
    """An embedder without a model: a text seeds a random vector, soft tokens are added, `slow` takes half a second."""

    class SeededEmbedder:
        dim = DIM
        fingerprint = "seeded"

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
            "retrieval": {"shards": 2, "deadline_s": 20},
            "cluster": {"shard": {"cpus": 0, "memory_gib": 0}},
        }
    )


def start(config: Config, added: AddedFolder | None = None, **retrieval: Any) -> RetrievalHandle:
    changed = config.model_copy(update={"retrieval": config.retrieval.model_copy(update=retrieval)})
    service = RetrievalService.options(num_cpus=0).remote(changed, "test", load_stand_in, added=added)
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
    service = start(config)
    slow = service.search.remote(SearchRequest("slow"))
    time.sleep(0.1)
    assert ray.get(service.describe.remote())["requests"] == 1
    assert ray.wait([slow], timeout=0)[0] == []
    assert len(ray.get(slow).retrieved) == 10
    ray.kill(service)


def test_a_further_embedder_gives_the_bits_of_the_first_with_and_without_latents(
    config: Config, tmp_path: Path
) -> None:
    folder, width = DatasetFolder(tmp_path), load_embedder(config.model).dim
    folder.video_embeddings("test").parent.mkdir(parents=True)
    np.save(folder.video_embeddings("test"), np.random.default_rng(1).standard_normal((2, width)).astype(np.float32))
    folder.docid2row("test").write_text(json.dumps({"a": 0, "b": 1}), encoding="utf-8")
    retrieval = config.retrieval.model_copy(update={"shards": 1, "embedders": 2})
    mine = config.model_copy(update={"data": config.data.model_copy(update={"root": tmp_path}), "retrieval": retrieval})
    service = RetrievalService.options(num_cpus=0).remote(mine, "test")
    another = ray.get(service.shards.remote())["embedder 1 (test)"]
    soft = np.random.default_rng(2).standard_normal((8, width)).astype(np.float32)
    for query, latents in (("a red circle jumps", None), ("a red circle jumps", soft), ("blue", soft[:3])):
        result = ray.get(service.search.remote(SearchRequest(query, latents)))
        [vector] = ray.get(another.embed_queries.remote([query], [latents]))
        assert vector.tobytes() == result.query_vector.tobytes()
    assert ray.get(service.describe.remote())["embedders"] == 2
    ray.kill(service)


@pytest.mark.chaos
def test_searches_go_on_while_an_embedder_is_killed(config: Config) -> None:
    service = start(config, embedders=2)
    wanted = [ray.get(service.search.remote(SearchRequest(f"query {i}"))).retrieved for i in range(20)]
    another = ray.get(service.shards.remote())["embedder 1 (test)"]
    slow = service.search.remote(SearchRequest("slow"))  # keeps the first one busy
    ray.kill(another, no_restart=False)
    results = ray.get([service.search.remote(SearchRequest(f"query {i}")) for i in range(20)])
    assert [result.retrieved for result in results] == wanted and len(ray.get(slow).retrieved) == 10
    while ray.get(service.describe.remote())["down"]:
        time.sleep(0.05)
    [vector] = ray.get(another.embed_queries.options(max_task_retries=3).remote(["query 0"], [None]))
    assert vector.tobytes() == ray.get(service.search.remote(SearchRequest("query 0"))).query_vector.tobytes()
    ray.kill(service)


@pytest.mark.chaos
def test_searches_go_on_while_replicas_are_killed(config: Config) -> None:
    service = start(config, replicas=2)
    wanted = {i: ray.get(service.search.remote(SearchRequest(f"query {i}", rank_of="video 07"))) for i in range(20)}
    shards = ray.get(service.shards.remote())
    assert sorted(shards) == [f"shard {i} (test) replica {r}" for i in range(2) for r in range(2)]
    for victim in ("shard 0 (test) replica 0", "shard 1 (test) replica 1"):
        pending = {}
        for i in range(20):
            if i == 5:
                ray.kill(shards[victim], no_restart=False)
            pending[i] = service.search.remote(SearchRequest(f"query {i}", rank_of="video 07"))
            time.sleep(0.005)
        for i, reference in pending.items():
            result = ray.get(reference)
            assert (result.retrieved, result.rank_of) == (wanted[i].retrieved, wanted[i].rank_of)
    ray.kill(service)


@pytest.mark.chaos
def test_without_a_replica_a_search_waits_for_the_shard_to_come_back(config: Config) -> None:
    service = start(config)
    before = ray.get(service.search.remote(SearchRequest("a query", k=VIDEOS)))
    ray.kill(ray.get(service.shards.remote())["shard 0 (test)"], no_restart=False)
    after = ray.get([service.search.remote(SearchRequest("a query", k=VIDEOS)) for _ in range(5)])
    assert all(result.retrieved == before.retrieved for result in after)
    ray.kill(service)


@pytest.mark.chaos
def test_a_shard_that_is_gone_is_named_at_the_deadline_or_in_a_partial_answer(config: Config) -> None:
    service = start(config, deadline_s=1.0)
    ray.kill(ray.get(service.shards.remote())["shard 1 (test)"])
    with pytest.raises(RetrievalError, match=r"deadline_s=1 s; waiting for shard 1 \(test\).*ActorDiedError"):
        ray.get(service.search.remote(SearchRequest("a query")))
    partial = ray.get(service.search.remote(SearchRequest("a query", k=VIDEOS, partial=True)))
    assert (len(partial.retrieved), partial.missing) == (VIDEOS // 2, ["shard 1 (test)"])
    assert ray.get(service.describe.remote())["down"] == ["shard 1 (test)"]
    ray.kill(service)


@pytest.mark.chaos
def test_a_shard_that_hangs_is_named_at_the_deadline(config: Config) -> None:
    service = start(config, deadline_s=1.0, shard_timeout_s=0.5)
    shard = ray.get(service.shards.remote())["shard 1 (test)"]
    process = ray.get(shard.__ray_call__.remote(lambda _: os.getpid()))
    os.kill(process, signal.SIGSTOP)
    try:
        with pytest.raises(RetrievalError, match=r"deadline_s=1 s; waiting for shard 1 \(test\).* within 0\.5 s"):
            ray.get(service.search.remote(SearchRequest("a query")))
    finally:
        os.kill(process, signal.SIGCONT)
    assert len(ray.get(service.search.remote(SearchRequest("a query"))).retrieved) == 10
    ray.kill(service)


def add(added: AddedFolder, video_id: str, vector: np.ndarray) -> None:
    """A video as a server adds it, without its film."""
    video = AddedVideo(video_id=video_id, sha256="0" * 64, media_type="video/mp4", embedder="seeded")
    (added.receiving / video_id).mkdir(parents=True)
    added.accept(added.receiving / video_id, video)
    added.finish(video, vector)


def test_videos_come_and_go_without_stopping_searches(config: Config, tmp_path: Path) -> None:
    added = AddedFolder(tmp_path)
    service = start(config, added, replicas=2)
    first = ray.get(service.describe.remote())["index_version"]
    assert ray.get(service.refresh.remote()) == first
    running = [service.search.remote(SearchRequest(f"query {i}", k=3)) for i in range(50)]
    best = ray.get(service.search.remote(SearchRequest("a query")))
    add(added, "ünï çødé", best.query_vector)
    added.remove("video 05")
    refresh = service.refresh.remote()
    running += [service.search.remote(SearchRequest(f"query {i}", k=3)) for i in range(50)]
    second = ray.get(refresh)
    assert all(len(result.retrieved) == 3 for result in ray.get(running))
    now = ray.get(service.search.remote(SearchRequest("a query", k=VIDEOS)))
    assert (now.retrieved[0][0], now.index_version, len(now.retrieved)) == ("ünï çødé", second, VIDEOS)
    then = ray.get(service.search.remote(SearchRequest("a query", k=VIDEOS, index_version=first)))
    assert then.retrieved[:10] == best.retrieved and "video 05" in dict(then.retrieved)
    with pytest.raises(RetrievalError, match="'video 05' not in the corpus"):
        ray.get(service.search.remote(SearchRequest("a query", exclude=["video 05"])))
    add(added, "video 05", best.query_vector)
    third = ray.get(service.refresh.remote())
    assert ray.get(service.describe.remote())["versions"] == [second, third]
    with pytest.raises(RetrievalError, match=f"index version '{first}' is not served"):
        ray.get(service.search.remote(SearchRequest("a query", index_version=first)))
    added.delete("video 05")
    assert ray.get(service.refresh.remote()) == second  # of the ids and vectors, so it is the same again
    ray.kill(service)


@pytest.mark.chaos
def test_a_replica_that_is_killed_during_a_refresh_comes_back_with_the_new_version(
    config: Config, tmp_path: Path
) -> None:
    added = AddedFolder(tmp_path)
    service = start(config, added, replicas=2)
    vector = np.eye(DIM, dtype=np.float32)[0]
    add(added, "new", vector)
    refresh = service.refresh.remote()
    searches = [service.search.remote(SearchRequest(vector=vector, k=1)) for _ in range(20)]
    time.sleep(0.01)
    ray.kill(ray.get(service.shards.remote())["shard 1 (test) replica 0"], no_restart=False)
    version = ray.get(refresh)
    assert all(len(result.retrieved) == 1 for result in ray.get(searches))
    now = ray.get(service.search.remote(SearchRequest(vector=vector, k=1)))
    assert (now.retrieved[0][0], now.index_version) == ("new", version)
    while ray.get(service.describe.remote())["down"]:
        time.sleep(0.05)
    assert ray.get(service.search.remote(SearchRequest(vector=vector, k=1))).retrieved == now.retrieved
    ray.kill(service)


def test_an_embedder_of_another_fingerprint_is_refused(config: Config, tmp_path: Path) -> None:
    shutil.copytree(config.data.root, tmp_path, dirs_exist_ok=True)
    mine = config.model_copy(update={"data": config.data.model_copy(update={"root": tmp_path})})
    service = start(mine)
    settings = DatasetFolder(tmp_path).embedding_settings("test")
    settings.write_text(json.dumps({"embedder": "another"}))
    with pytest.raises(RetrievalError, match="made with embedder another, but queries are embedded with seeded"):
        ray.get(service.refresh.remote())
    ray.kill(service)
    with pytest.raises(RayActorError, match="made with embedder another, but queries are embedded with seeded"):
        start(mine)


def test_another_index_type_comes_by_configuration(config: Config) -> None:
    service = start(config, index="IVF4,Flat", index_params="nprobe=4")
    assert len(ray.get(service.search.remote(SearchRequest("a query", k=VIDEOS))).retrieved) == VIDEOS
    ray.kill(service)
    with pytest.raises(RetrievalError, match=r"FAISS cannot build retrieval\.index='Flatt'"):
        start(config, index="Flatt")


def test_shards_take_the_faiss_of_a_folder_and_one_that_does_not_load_ends_the_start(
    config: Config, tmp_path: Path
) -> None:
    package = write_faiss(tmp_path)
    own = {"shard": config.retrieval.shard.model_copy(update={"faiss": tmp_path})}
    service, expected = start(config, **own), start(config)
    for actor in ray.get(service.shards.remote()).values():
        assert ray.get(actor.__ray_call__.remote(lambda _: hasattr(sys.modules["faiss"], "of_the_folder")))
    assert not ray.get(service.__ray_call__.remote(lambda _: hasattr(sys.modules["faiss"], "of_the_folder")))
    request = SearchRequest("a query", rank_of="video 07")
    [one, other] = ray.get([one.search.remote(request) for one in (service, expected)])
    assert (one.retrieved, one.rank_of) == (other.retrieved, other.rank_of)
    package.write_text("raise ImportError('libcublas.so.12: cannot open shared object file')")
    for actor in (service, expected):
        ray.kill(actor)
    with pytest.raises(RetrievalError, match=r"shard \d \(test\) does not start .*libcublas\.so\.12"):
        start(config, **own)


@pytest.mark.chaos
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


@ray.remote(num_cpus=0)
def _late() -> str:
    time.sleep(60)
    return "version"


def test_a_call_that_is_cancelled_before_it_is_sent_holds_nobody_up() -> None:
    """As when a client goes away: Ray cancels what its search has asked for, sent or not."""
    shard = IndexShard.options(num_cpus=0).remote("shard", RetrievalConfig(), 1, False)
    ray.get(shard.load.remote("version", np.arange(VIDEOS), np.eye(VIDEOS, dtype=np.float32)))
    late = _late.remote()
    cancelled = shard.unload.remote(late)
    answer = shard.unload.remote("version")
    ray.cancel(cancelled)
    began = time.monotonic()
    assert ray.get(answer, timeout=40) is None and time.monotonic() - began < 10
    ray.cancel(late, force=True)
    ray.kill(shard)


@pytest.mark.parametrize("actor", [Captioner, ClipStore, FurtherEmbedder, IndexShard, RewardWorker, ToolRouter])
def test_every_actor_that_episodes_ask_takes_calls_in_any_order(actor: Any) -> None:
    assert actor._default_options["allow_out_of_order_execution"]
