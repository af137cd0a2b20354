"""The distributed search on shards in this process: answers, batching, and every way it can fail."""

import asyncio
import threading

import numpy as np
import pytest

from vsr1.retrieval.corpus import Catalogue
from vsr1.retrieval.index import Ragged, RankTarget, Shard, ShardHits, ShardQueries
from vsr1.retrieval.replicas import ReplicaSet, ShardUnavailableError
from vsr1.retrieval.request import RetrievalError, SearchRequest
from vsr1.retrieval.searcher import Searcher
from vsr1.settings.parts import RetrievalConfig

DIM = 3
VECTORS = np.array([[1, 0, 0], [0.6, 0.8, 0], [0.6, 0.8, 0], [0, 0, 1], [0, 1, 0]], np.float32)
CATALOGUE = Catalogue(["a", "b", "c", "d", "e"], DIM, "v1")
QUICK = RetrievalConfig(deadline_s=5)


class WordEmbedder:
    """Word i of "x y z" points along axis i; soft tokens are added. `nan` and `nothing` embed badly."""

    def __init__(self, dim: int = DIM) -> None:
        self.dim = dim
        self.fingerprint = "words"
        self.calls: list[int] = []
        self.threads: set[str] = set()

    def embed_queries(self, queries: list[str], soft_tokens: list[np.ndarray | None] | None = None) -> np.ndarray:
        self.calls.append(len(queries))
        self.threads.add(threading.current_thread().name)
        if "broken" in queries:
            raise KeyError("the model broke")
        vectors = np.array([self._vector(query) for query in queries], np.float32)
        for vector, soft in zip(vectors, soft_tokens or [None] * len(queries), strict=True):
            if soft is not None:
                vector += soft.sum(axis=0)
        return vectors

    def _vector(self, query: str) -> list[float]:
        fixed = {"nan": [np.nan, 0.0, 0.0], "nothing": [0.0, 0.0, 0.0]}
        return fixed.get(query) or [float(word in query.split()) for word in "xyz"]


class GatedEmbedder(WordEmbedder):
    """It embeds once its gate is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.is_inside, self.gate = threading.Event(), threading.Event()

    def embed_queries(self, queries: list[str], soft_tokens: list[np.ndarray | None] | None = None) -> np.ndarray:
        self.is_inside.set()
        assert self.gate.wait(60), "the event loop is held up"
        return super().embed_queries(queries, soft_tokens)


class LocalShard:
    """A replica in this process; `fault` says what is wrong with it, and `recover` waits until nothing is."""

    def __init__(self, name: str, first: int, end: int) -> None:
        self.name = name
        self.fault = ""
        self.scatters: list[int] = []
        self._shard = Shard(name, np.arange(first, end), VECTORS[first:end])

    async def search(self, version: str, queries: ShardQueries) -> ShardHits:
        self.scatters.append(len(queries.k))
        await self._suffer()
        hits = self._shard.search(queries)
        if self.fault == "forgets":
            return ShardHits(Ragged(hits.rows.values[:-1], hits.rows.ends - 1), hits.scores[:-1], hits.probe_scores)
        return hits

    async def count_above(self, version: str, targets: list[RankTarget]) -> list[int]:
        await self._suffer()
        return self._shard.count_above(targets)

    async def recover(self) -> None:
        while self.fault:
            await asyncio.sleep(0.01)

    async def _suffer(self) -> None:
        if self.fault == "hangs":
            await asyncio.sleep(60)
        if self.fault == "dead":
            raise ShardUnavailableError(self.name, "dead")
        if self.fault == "raises":
            raise KeyError("a fault of the program")


def searcher(
    embedder: WordEmbedder | None = None, config: RetrievalConfig = QUICK, shards: int = 2, replicas: int = 1
) -> tuple[Searcher, list[LocalShard]]:
    """A searcher and its replicas, those of a shard side by side."""
    parts, sets = [], []
    for i, (first, end) in enumerate(CATALOGUE.bounds(shards)):
        members = [LocalShard(f"shard {i}", first, end) for _ in range(replicas)]
        parts += members
        sets.append(ReplicaSet(f"shard {i}", members, timeout_s=config.shard_timeout_s))
    search = Searcher(embedder or WordEmbedder(), sets, config)
    search.serve(CATALOGUE)
    return search, parts


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_a_full_answer(shards: int) -> None:
    async def story() -> None:
        search, _ = searcher(shards=shards)
        request = SearchRequest("x", k=3, exclude=["b", "b"], rank_of="c", scores_of=["e", "a", "e"])
        result = await search.search(request)
        assert [video for video, _ in result.retrieved] == ["a", "c", "d"]  # d and e tie at 0
        assert result.retrieved[1][1] == pytest.approx(0.6)
        assert result.rank_of == 3  # b ties with c, comes first by id, and counts although it is excluded
        assert result.scores == {"e": 0.0, "a": 1.0}
        assert result.index_version == "v1"
        assert result.query_vector.tolist() == [1.0, 0.0, 0.0]

    asyncio.run(story())


def test_soft_tokens_and_vectors() -> None:
    async def story() -> None:
        embedder = WordEmbedder()
        search, _ = searcher(embedder)
        soft = np.array([[0, 0, 3.0], [0, 0, 4.0]], np.float32)
        refined = await search.search(SearchRequest("x", soft_tokens=soft, k=1))
        assert refined.retrieved == [("d", 7.0)]
        assert refined.rank_of is None and refined.scores == {}
        given = await search.search(SearchRequest(vector=np.array([0, 5.0, 0]), k=1))
        assert given.retrieved == [("e", 1.0)]  # a vector counts by its direction
        assert embedder.calls == [1]

    asyncio.run(story())


def test_everything_may_be_excluded() -> None:
    async def story() -> None:
        search, _ = searcher()
        result = await search.search(SearchRequest("x", exclude=list("abcde"), rank_of="a"))
        assert result.retrieved == []
        assert result.rank_of == 1
        assert len((await search.search(SearchRequest("x", k=99, exclude=["a"]))).retrieved) == 4

    asyncio.run(story())


def test_requests_that_arrive_together_share_one_embedding_and_one_scatter() -> None:
    async def story() -> None:
        embedder = WordEmbedder()
        search, parts = searcher(embedder)
        requests = [SearchRequest(word, k=1, rank_of="a") for word in "xyzxyz"]
        results = await asyncio.gather(*(search.search(request) for request in requests))
        assert [result.retrieved[0][0] for result in results] == ["a", "e", "d", "a", "e", "d"]
        assert [result.rank_of for result in results] == [1, 4, 2, 1, 4, 2]
        assert embedder.calls == [6]
        assert [part.scatters for part in parts] == [[6], [6]]
        assert search.counts == {
            "requests": 6,
            "batches": 1,
            "embed_calls": 1,
            "embedded": 6,
            "largest_batch": 6,
            "partial": 0,
        }
        assert embedder.threads == {"embedder_0"}

    asyncio.run(story())


def test_the_event_loop_is_free_while_queries_are_embedded() -> None:
    async def story() -> None:
        embedder = GatedEmbedder()
        search, _ = searcher(embedder)
        task = asyncio.create_task(search.search(SearchRequest("x")))
        while not embedder.is_inside.is_set():
            await asyncio.sleep(0.01)
        embedder.gate.set()  # by the event loop, for which the embedder waits
        await task

    asyncio.run(story())


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (SearchRequest("x", exclude=["a", "nope"]), r"exclude: 'nope' not in the corpus of 5 videos, index v1"),
        (SearchRequest("x", rank_of="nope"), "rank_of: 'nope'"),
        (SearchRequest("x", scores_of=["nope"]), "scores_of: 'nope'"),
        (SearchRequest("x", soft_tokens=np.ones((8, 2))), r"soft tokens of query 'x' .*\(8, 2\)"),
        (SearchRequest("x", soft_tokens=np.full((8, 3), np.nan)), "must be finite"),
        (SearchRequest(vector=np.ones(2)), r"the query vector has shape \(2,\)"),
        (SearchRequest(vector=np.zeros(3)), "the query vector is all zeros"),
        (SearchRequest(vector=np.array([1, np.inf, 0])), "the query vector is not finite"),
        (SearchRequest("nan"), "the embedding of query 'nan' is not finite"),
        (SearchRequest("nothing"), "the embedding of query 'nothing' is all zeros"),
    ],
)
def test_a_wrong_request_fails_alone(request_: SearchRequest, says: str) -> None:
    async def story() -> None:
        search, _ = searcher()
        good, bad = await asyncio.gather(
            search.search(SearchRequest("x", k=1)), search.search(request_), return_exceptions=True
        )
        assert not isinstance(good, BaseException) and good.retrieved == [("a", 1.0)]
        with pytest.raises(RetrievalError, match=says):
            raise bad if isinstance(bad, BaseException) else AssertionError("answered")

    asyncio.run(story())


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("dead", r"no answer within retrieval\.deadline_s=0\.3 s; waiting for shard 1 is not available \(.*dead"),
        ("hangs", r"waiting for shard 1 is not available \(shard 1 gave no answer within 0\.1 s\)"),
        ("forgets", "the shards gave 4 videos where 5 were due"),
    ],
)
def test_a_faulty_shard_is_an_error_and_the_next_search_is_fine(fault: str, says: str) -> None:
    async def story() -> None:
        search, parts = searcher(config=RetrievalConfig(deadline_s=0.3, shard_timeout_s=0.1))
        parts[1].fault = fault
        with pytest.raises(RetrievalError, match=says):
            await search.search(SearchRequest("x"))
        parts[1].fault = ""
        await asyncio.sleep(0.05)
        assert len((await search.search(SearchRequest("x"))).retrieved) == 5

    asyncio.run(story())


def test_a_search_waits_for_a_shard_that_comes_back() -> None:
    async def story() -> None:
        embedder = WordEmbedder()
        search, parts = searcher(embedder)
        parts[0].fault = "dead"
        task = asyncio.create_task(search.search(SearchRequest("x", rank_of="b")))
        await asyncio.sleep(0.05)
        assert not task.done()
        parts[0].fault = ""
        result = await task
        assert (len(result.retrieved), result.rank_of, result.missing) == (5, 2, [])
        assert embedder.calls == [1]  # not embedded again

    asyncio.run(story())


def test_a_partial_answer_names_what_is_missing() -> None:
    async def story() -> None:
        search, parts = searcher(config=QUICK.model_copy(update={"deadline_s": 1.0}))
        parts[0].fault = "dead"
        request = SearchRequest("y", k=5, partial=True, rank_of="a", scores_of=["a", "e"], exclude=["d"])
        result = await search.search(request)
        assert result.retrieved == [("e", 1.0), ("c", pytest.approx(0.8))]
        assert (result.missing, result.rank_of, result.scores) == (["shard 0"], None, {"e": 1.0})
        emptied = await search.search(SearchRequest("y", partial=True, exclude=["c", "d", "e"]))
        assert (emptied.retrieved, emptied.missing) == ([], ["shard 0"])
        parts[1].fault = "dead"
        with pytest.raises(RetrievalError, match=r"waiting for shard 0 .*; shard 1"):
            await search.search(request)  # no shard, no answer

    asyncio.run(story())


def test_another_replica_answers_for_a_dead_one() -> None:
    async def story() -> None:
        search, parts = searcher(replicas=2)
        parts[0].fault = "dead"
        results = await asyncio.gather(*(search.search(SearchRequest("x", k=5, rank_of="e")) for _ in range(20)))
        assert all(len(result.retrieved) == 5 and result.rank_of == 5 for result in results)

    asyncio.run(story())


def test_a_fault_of_the_program_comes_through() -> None:
    async def story() -> None:
        search, parts = searcher(replicas=2)
        parts[0].fault = parts[1].fault = "raises"
        with pytest.raises(KeyError, match="a fault of the program"):
            await search.search(SearchRequest("x"))

    asyncio.run(story())


def test_versions_are_served_side_by_side_and_retired() -> None:
    async def story() -> None:
        search, _ = searcher()
        second, third = (Catalogue(list("ABCDE"), DIM, name) for name in ("v2", "v3"))
        assert search.serve(second) == []
        now, before = await asyncio.gather(
            search.search(SearchRequest("x", k=1)), search.search(SearchRequest("x", k=1, index_version="v1"))
        )
        assert (now.retrieved[0][0], now.index_version) == ("A", "v2")
        assert (before.retrieved[0][0], before.index_version) == ("a", "v1")
        assert search.serve(third) == ["v1"]
        with pytest.raises(RetrievalError, match=r"version 'v1' is not served; there are v2, v3 \(retrieval\.keep_ver"):
            await search.search(SearchRequest("x", index_version="v1"))

    asyncio.run(story())


def test_older_versions_are_kept_as_long_as_a_search_may_need_them() -> None:
    async def story() -> None:
        search, _ = searcher(config=RetrievalConfig(keep_versions=1, keep_s=0.2))
        later = [Catalogue(list("ABCDE"), DIM, name) for name in ("v2", "v3", "v4", "v5")]
        assert [search.serve(catalogue) for catalogue in later[:3]] == [[], [], []]
        assert search.versions == ["v1", "v2", "v3", "v4"]
        await asyncio.sleep(0.3)
        assert search.serve(later[3]) == ["v1", "v2", "v3"]  # v4 has only now been replaced

    asyncio.run(story())


def test_a_slow_embedder_is_named() -> None:
    async def story() -> None:
        embedder = GatedEmbedder()
        search, _ = searcher(embedder, RetrievalConfig(deadline_s=0.1))
        with pytest.raises(RetrievalError, match="waiting for the query embedder"):
            await search.search(SearchRequest("x"))
        embedder.gate.set()

    asyncio.run(story())


def test_an_embedder_that_fails_is_not_hidden() -> None:
    async def story() -> None:
        search, _ = searcher()
        with pytest.raises(KeyError, match="the model broke"):
            await search.search(SearchRequest("broken"))

    asyncio.run(story())


def test_an_embedder_of_another_width_is_refused() -> None:
    with pytest.raises(RetrievalError, match=r"vectors of 4 numbers, but the corpus \(index v1\) holds 3"):
        searcher(WordEmbedder(dim=4))
