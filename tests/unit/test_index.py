"""Shards and their merge against brute force in numpy. Whole-number vectors make scores exact, so ties are real."""

from pathlib import Path
from typing import NamedTuple

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vsr1.retrieval.corpus import Catalogue
from vsr1.retrieval.index import Ragged, RankTarget, Shard, ShardQueries, merge_hits
from vsr1.retrieval.request import RetrievalError

NONE = np.empty(0, np.int64)


def shard_of(vectors: np.ndarray, rows: np.ndarray | None = None) -> Shard:
    return Shard("shard 0", np.arange(len(vectors)) if rows is None else rows, vectors.astype(np.float32))


class Query(NamedTuple):
    vector: np.ndarray
    k: int
    exclude: np.ndarray
    probes: np.ndarray


class Found(NamedTuple):
    rows: np.ndarray
    scores: np.ndarray
    probe_scores: np.ndarray


def ask(vector: np.ndarray, k: int, exclude: np.ndarray = NONE, probes: np.ndarray = NONE) -> Query:
    return Query(vector.astype(np.float32), k, exclude, probes)


def batch(queries: list[Query]) -> ShardQueries:
    vectors, k, exclude, probes = zip(*queries, strict=True)
    return ShardQueries(np.stack(vectors), np.array(k), Ragged.of(exclude), Ragged.of(probes))


def search(shard: Shard, queries: list[Query]) -> list[Found]:
    asked = batch(queries)
    hits = shard.search(asked)
    scores, probe_scores = Ragged(hits.scores, hits.rows.ends), Ragged(hits.probe_scores, asked.probes.ends)
    return [Found(hits.rows[i], scores[i], probe_scores[i]) for i in range(len(queries))]


def scores_of(shard: Shard, vector: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Scores of some rows, in the order given."""
    [hits] = search(shard, [ask(vector, 1, probes=rows)])
    return hits.probe_scores


@st.composite
def corpora(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int, set[int]]:
    """Vectors with many repeats, a query, a number of shards and rows to exclude."""
    n, dim = draw(st.integers(2, 14)), draw(st.integers(1, 3))
    number = st.integers(-2, 2)
    vector = st.lists(number, min_size=dim, max_size=dim).filter(any)
    vectors = np.array(draw(st.lists(vector, min_size=n, max_size=n)), np.float32)
    query = np.array(draw(vector), np.float32)
    return vectors, query, draw(st.integers(1, n)), draw(st.sets(st.integers(0, n - 1)))


@given(corpora())
@settings(max_examples=150, deadline=None)
def test_merged_shards_equal_brute_force(case: tuple[np.ndarray, np.ndarray, int, set[int]]) -> None:
    vectors, query, shards, exclude = case
    n = len(vectors)
    scores = vectors @ query
    everything = sorted(range(n), key=lambda row: (-scores[row], row))
    allowed = [row for row in everything if row not in exclude]
    catalogue = Catalogue([f"v{row:02}" for row in range(n)], vectors.shape[1], "v")
    bounds = catalogue.bounds(shards)
    parts = [shard_of(vectors[first:end], np.arange(first, end)) for first, end in bounds]
    banned = np.array(sorted(exclude), np.int64)
    for k in range(1, n + 2):
        asked = [
            [ask(query, k, banned, np.arange(first, end)), ask(-query, k + 1, NONE, NONE)] for first, end in bounds
        ]
        hits = [shard.search(batch(queries)) for shard, queries in zip(parts, asked, strict=True)]
        rows, merged = merge_hits(hits, np.array([k, k + 1]))
        assert rows[0].tolist() == allowed[:k]
        assert merged[: len(rows[0])].tolist() == scores[allowed[:k]].tolist()
        assert rows[1].tolist() == sorted(range(n), key=lambda row: (scores[row], row))[: k + 1]
        assert np.concatenate([part.probe_scores for part in hits]).tolist() == scores.tolist()
    for row in range(n):
        target = RankTarget(query, float(scores[row]), row)
        assert sum(shard.count_above([target])[0] for shard in parts) == everything.index(row)


def test_a_score_has_the_same_bits_everywhere() -> None:
    """Copies of one video at distant rows score equal, filtered or not, searched or probed; so ranks are exact."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((300, 67)).astype(np.float32)
    vectors[[120, 299]] = vectors[7]
    shard = shard_of(vectors)
    for query in rng.standard_normal((20, 67)).astype(np.float32):
        every = np.arange(300)
        [hits] = search(shard, [ask(query, 300, probes=every)])
        by_row = dict(zip(hits.rows.tolist(), hits.scores.tolist(), strict=True))
        assert by_row == dict(zip(every.tolist(), hits.probe_scores.tolist(), strict=True))
        assert by_row[7] == by_row[120] == by_row[299]
        [some] = search(shard, [ask(query, 10, np.array([0, 5, 120]))])
        assert all(by_row[row] == score for row, score in zip(some.rows.tolist(), some.scores.tolist(), strict=True))
        for rank, row in enumerate(hits.rows[:20].tolist(), start=1):
            assert shard.count_above([RankTarget(query, by_row[row], row)]) == [rank - 1]


def test_k_above_the_corpus_gives_all() -> None:
    [hits] = search(shard_of(np.eye(3)), [ask(np.array([1.0, 0.5, 0.1]), 10)])
    assert hits.rows.tolist() == [0, 1, 2]


def test_all_excluded_gives_none() -> None:
    [hits] = search(shard_of(np.eye(3)), [ask(np.ones(3), 2, np.array([0, 1, 2, 9]))])
    assert len(hits.rows) == len(hits.scores) == 0


def test_exclusions_are_global_rows() -> None:
    shard = shard_of(np.eye(2), np.array([10, 11]))
    [hits] = search(shard, [ask(np.ones(2), 2, np.array([0, 1, 10]))])
    assert hits.rows.tolist() == [11]


def test_scores_come_in_the_order_asked_and_may_repeat() -> None:
    shard = shard_of(np.array([[1.0], [2.0], [3.0]]))
    assert scores_of(shard, np.ones(1), np.array([2, 0, 2])).tolist() == [3.0, 1.0, 3.0]


def test_an_index_that_faiss_does_not_know_is_refused() -> None:
    with pytest.raises(RetrievalError, match=r"FAISS cannot build retrieval\.index='Flatt'"):
        Shard("shard 1", np.arange(2), np.ones((2, 3), np.float32), factory="Flatt")


@st.composite
def batches(draw: st.DrawFn) -> tuple[np.ndarray, list[Query]]:
    """A corpus of some thousand vectors in clusters closer than FAISS's rounding, and a batch of mixed queries."""
    seed, n, dim = draw(st.integers(0, 2**32 - 1)), draw(st.integers(40, 3000)), draw(st.sampled_from([3, 64, 257]))
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((draw(st.integers(1, n)), dim))
    vectors = centres[rng.integers(0, len(centres), n)] + draw(
        st.sampled_from([0.0, 1e-8, 1e-6])
    ) * rng.standard_normal((n, dim))
    queries = []
    for _ in range(draw(st.integers(1, 40))):
        gone = rng.choice(n, draw(st.integers(0, n)) if draw(st.booleans()) else 0, replace=False)
        queries.append(ask(rng.standard_normal(dim), draw(st.integers(1, n + 1)), gone, rng.integers(0, n, 3)))
    return vectors.astype(np.float32), queries


@given(batches())
@settings(max_examples=60, deadline=None)
def test_a_batch_equals_brute_force_pair_by_pair(case: tuple[np.ndarray, list[Query]]) -> None:
    vectors, queries = case
    shard = shard_of(vectors)
    for query, hits in zip(queries, search(shard, queries), strict=True):
        scores = scores_of(shard, query.vector, np.arange(len(vectors)))
        np.testing.assert_allclose(scores, vectors @ query.vector, atol=1e-3)
        order = np.lexsort((np.arange(len(vectors)), -scores))
        assert hits.rows.tolist() == order[~np.isin(order, query.exclude)][: query.k].tolist()
        assert hits.scores.tolist() == scores[hits.rows].tolist()
        assert hits.probe_scores.tolist() == scores[query.probes].tolist()
        targets = [RankTarget(query.vector, float(scores[row]), int(row)) for row in query.probes]
        places = np.argsort(order)
        assert shard.count_above(targets) == places[query.probes].tolist()


def test_another_index_type_gives_exact_scores_and_is_never_short() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((500, 16)).astype(np.float32)
    shard = Shard("shard 0", np.arange(500), vectors, factory="IVF16,Flat", search_params="nprobe=1")
    query = ask(vectors[3], 400, np.array([3]))
    [hits] = search(shard, [query])
    assert len(hits.rows) == 400
    assert hits.scores.tolist() == scores_of(shard, query.vector, hits.rows).tolist()
    assert 3 not in hits.rows


@pytest.mark.parametrize("factory", ["Flat", "IVF16,Flat"])
def test_a_long_exclusion_is_obeyed_by_every_index_type(factory: str) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((3000, 16)).astype(np.float32)
    shard = Shard("shard 0", np.arange(3000), vectors, factory=factory, search_params="")
    gone = rng.choice(3000, 700, replace=False)
    [hits] = search(shard, [ask(vectors[gone[0]], 30, gone)])
    assert len(hits.rows) == 30
    assert not set(hits.rows.tolist()) & set(gone.tolist())


def own_memory() -> int:
    """Bytes of this process that are neither a file's nor another process's."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(fields["RssAnon"].split()[0])


def test_vectors_of_another_process_are_searched_where_they_lie(tmp_path: Path) -> None:
    """Ray and memory maps give arrays that cannot be written; an exact shard adds no copy of its own to them."""
    vectors = np.random.default_rng(0).standard_normal((64_000, 256)).astype(np.float32)
    np.save(tmp_path / "vectors.npy", vectors)
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    before = own_memory()
    shard = Shard("shard 0", np.arange(len(mapped)), mapped)
    [hits] = search(shard, [ask(vectors[7], 1)])
    assert hits.rows.tolist() == [7]
    assert own_memory() - before < vectors.nbytes / 4


@pytest.mark.skipif(hasattr(faiss, "StandardGpuResources"), reason="this FAISS has GPU support")
def test_a_faiss_without_gpus_is_named_with_what_to_set() -> None:
    with pytest.raises(RetrievalError, match=r"FAISS \d.* of /.*/faiss has no GPU support; .*retrieval\.shard\.faiss"):
        Shard("shard 1", np.arange(2), np.eye(2, dtype=np.float32), gpu=True)


@pytest.mark.skipif(
    not (hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus()),
    reason="no GPU, or a FAISS without GPU support",
)
@pytest.mark.parametrize("whole", [True, False], ids=["ties", "random"])
def test_an_index_on_a_gpu_answers_as_one_on_the_cpu(whole: bool) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.integers(-2, 3, (5000, 16)) if whole else rng.standard_normal((5000, 64))
    vectors = np.concatenate([vectors, vectors[:1000]]).astype(np.float32)  # some rows twice
    rows = 7 * np.arange(len(vectors))
    cpu, gpu = (Shard("shard 0", rows, vectors, gpu=on_gpu) for on_gpu in (False, True))
    queries = [
        ask(vectors[i] + 0.1 * (not whole), k, rng.choice(rows, excluded, replace=False), rng.choice(rows, 5))
        for i, (k, excluded) in enumerate([(1, 0), (10, 0), (10, 300), (2100, 0), (6000, 50)] * 8)
    ]
    for one, other in zip(search(cpu, queries), search(gpu, queries), strict=True):
        assert all(part.tobytes() == again.tobytes() for part, again in zip(one, other, strict=True))
    targets = [RankTarget(query.vector, float(scores_of(cpu, query.vector, rows[:1])[0]), 0) for query in queries]
    assert cpu.count_above(targets) == gpu.count_above(targets)
