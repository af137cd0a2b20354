"""Reading the corpus, and every way in which its files can be wrong."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vsr1.formats.dataset import DatasetFolder
from vsr1.retrieval.corpus import Catalogue, load_corpus, open_corpus
from vsr1.retrieval.request import RetrievalError, SearchRequest


def write(folder: Path, vectors: Any, positions: Any) -> tuple[Path, Path]:
    paths = folder / "segment_embeds.npy", folder / "docid2row.json"
    np.save(paths[0], vectors)
    paths[1].write_text(json.dumps(positions), encoding="utf-8")
    return paths


def test_rows_are_sorted_ids_and_vectors_are_unit(tmp_path: Path) -> None:
    vectors = np.array([[0.0, 2.0], [3.0, 4.0], [5.0, 0.0]], np.float16)
    catalogue, loaded = load_corpus(*write(tmp_path, vectors, {"zebra": 0, "ähre": 1, "apple": 2}))
    assert catalogue.video_ids == ["apple", "zebra", "ähre"]
    assert loaded.dtype == np.float32
    assert loaded == pytest.approx(np.array([[1, 0], [0, 1], [0.6, 0.8]]))
    assert catalogue.rows(["ähre", "apple"], "exclude").tolist() == [2, 0]
    assert (len(catalogue), catalogue.dim) == (3, 2)


def test_the_version_follows_content_not_file_order(tmp_path: Path) -> None:
    vectors = np.eye(3, dtype=np.float32)
    first, _ = load_corpus(*write(tmp_path, vectors, {"a": 0, "b": 1, "c": 2}))
    moved, _ = load_corpus(*write(tmp_path, vectors[::-1], {"a": 2, "b": 1, "c": 0}))
    renamed, _ = load_corpus(*write(tmp_path, vectors, {"a": 0, "b": 1, "d": 2}))
    changed, _ = load_corpus(*write(tmp_path, vectors[[0, 2, 1]], {"a": 0, "b": 1, "c": 2}))
    assert first.version == moved.version
    assert len({first.version, renamed.version, changed.version}) == 3
    assert len(first.version) == 16


@pytest.mark.parametrize(
    ("vectors", "positions", "says"),
    [
        (np.eye(2), {"a": 0}, "1 entries, 1 ids and 1 rows"),
        (np.eye(2), {"a": 0, "b": 2}, "each of the 2 rows"),
        (np.eye(2), {"a": 0, "b": 0}, "2 entries, 2 ids and 1 rows"),
        (np.eye(2), ["a", "b"], "must map video ids to rows"),
        (np.ones(2), {"a": 0, "b": 1}, r"float array \[videos, dim\]"),
        (np.eye(2, dtype=np.int64), {"a": 0, "b": 1}, "float array"),
        (np.eye(1), {"a": 0}, "holds 1 videos; a search needs at least 2"),
        (np.array([[1.0, 0.0], [0.0, 0.0]]), {"a": 0, "b": 1}, r"\['b'\] are zero or not finite"),
        (np.array([[np.nan, 0.0], [0.0, 1.0]]), {"a": 0, "b": 1}, r"\['a'\] are zero or not finite"),
    ],
)
def test_malformed_corpora(tmp_path: Path, vectors: Any, positions: Any, says: str) -> None:
    with pytest.raises(RetrievalError, match=says):
        load_corpus(*write(tmp_path, vectors, positions))


@pytest.mark.parametrize("missing", [0, 1])
def test_missing_files(tmp_path: Path, missing: int) -> None:
    paths = write(tmp_path, np.eye(2), {"a": 0, "b": 1})
    paths[missing].unlink()
    with pytest.raises(RetrievalError, match=rf"{paths[missing].name} does not exist; build the dataset"):
        load_corpus(*paths)


def test_unknown_ids_are_named() -> None:
    catalogue = Catalogue([f"v{i}" for i in range(9)], 2, "abc")
    with pytest.raises(RetrievalError, match=r"exclude: 'x0', 'x1', 'x2', 'x3', 'x4' and 2 more not in the corpus"):
        catalogue.rows(["v1", *(f"x{i}" for i in range(7))], "exclude")


def test_shards_cover_all_rows_evenly() -> None:
    catalogue = Catalogue([f"v{i}" for i in range(7)], 2, "abc")
    assert catalogue.bounds(3) == [(0, 2), (2, 4), (4, 7)]
    with pytest.raises(RetrievalError, match=r"retrieval\.shards=8 is more than the 7 videos"):
        catalogue.bounds(8)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "either a query text or a vector"),
        ({"query": "a", "vector": np.ones(2)}, "not both"),
        ({"vector": np.ones(2), "soft_tokens": np.ones((8, 2))}, "soft tokens go into a query text"),
        ({"query": "a", "k": 0}, "k must be at least 1"),
    ],
)
def test_requests_that_make_no_sense(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(RetrievalError, match=says):
        SearchRequest(**fields)


def test_an_id_that_stands_twice_is_not_hidden_by_the_json_reader(tmp_path: Path) -> None:
    embeddings, docid2row = write(tmp_path, np.eye(2), {})
    docid2row.write_text('{"a": 0, "a": 1}')
    with pytest.raises(RetrievalError, match="holds 2 entries, 1 ids and 1 rows"):
        load_corpus(embeddings, docid2row)


def built(root: Path) -> DatasetFolder:
    folder = DatasetFolder(root)
    folder.video_embeddings("test").parent.mkdir(parents=True)
    write(folder.video_embeddings("test").parent, np.eye(3, dtype=np.float32), {"c": 0, "b": 1, "a": 2})
    return folder


def test_the_built_corpus_says_who_embedded_it(tmp_path: Path) -> None:
    folder = built(tmp_path)
    corpus = open_corpus(folder, "test")
    assert (corpus.catalogue.video_ids, corpus.embedder) == (["a", "b", "c"], None)
    np.testing.assert_array_equal(corpus.vectors, np.eye(3)[::-1])
    folder.embedding_settings("test").write_text(json.dumps({"embedder": "e"}))
    assert open_corpus(folder, "test").embedder == "e"


def test_a_folder_of_an_older_version_is_read_unless_it_searched_another_corpus(tmp_path: Path) -> None:
    folder = built(tmp_path)
    version = open_corpus(folder, "test").catalogue.version
    current = folder.index("test").with_name("current.json")
    current.parent.mkdir()
    current.write_text(json.dumps({"version": version}))
    assert open_corpus(folder, "test").catalogue.version == version
    current.write_text(json.dumps({"version": "0123456789abcdef"}))
    with pytest.raises(RetrievalError, match=rf"names index 0123456789abcdef, but .* holds {version}: remove current"):
        open_corpus(folder, "test")
