"""Snapshots: whole or refused, immutable, and changed only into new ones."""

import errno
import json
from pathlib import Path

import numpy as np
import pytest

from vsr1.formats.dataset import DatasetFolder
from vsr1.retrieval import snapshot as module
from vsr1.retrieval.corpus import make_catalogue
from vsr1.retrieval.request import RetrievalError
from vsr1.retrieval.snapshot import changed, open_current, read_snapshot, set_current, write_snapshot

IDS = ["a", "ünï çødé", "視頻 1", "b"]


def corpus(seed: int = 0, ids: list[str] = IDS):
    return make_catalogue(ids, np.random.default_rng(seed).standard_normal((len(ids), 5)), "test")


def dataset(root: Path, embedder: str | None = "e") -> DatasetFolder:
    folder = DatasetFolder(root)
    catalogue, vectors = corpus()
    folder.video_embeddings("test").parent.mkdir(parents=True, exist_ok=True)
    np.save(folder.video_embeddings("test"), vectors)
    rows = {video_id: row for row, video_id in enumerate(catalogue.video_ids)}
    folder.docid2row("test").write_text(json.dumps(rows))
    folder.embedding_settings("test").write_text(json.dumps({"embedder": embedder}))
    return folder


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    catalogue, vectors = corpus()
    manifest = write_snapshot(tmp_path, catalogue, vectors, embedder="e", source="s")
    assert (manifest.version, manifest.count, manifest.dim) == (catalogue.version, 4, 5)
    found = read_snapshot(tmp_path, catalogue.version)
    assert found.catalogue == catalogue
    np.testing.assert_array_equal(found.vectors, vectors)
    assert (found.embedder, found.source) == ("e", "s")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    write_snapshot(tmp_path, catalogue, vectors, embedder="e", source="s")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_a_change_is_a_new_version_and_nothing_else_moves() -> None:
    catalogue, vectors = corpus()
    new = np.array([0, 3.0, 0, 0, 0])
    later, moved = changed(catalogue, vectors, {"c": new, "a": new}, ["b"])
    assert later.video_ids == ["a", "c", "ünï çødé", "視頻 1"]
    assert moved[0].tolist() == moved[1].tolist() == [0, 1, 0, 0, 0]
    np.testing.assert_array_equal(moved[2:], vectors[[row for row, v in enumerate(catalogue.video_ids) if len(v) > 1]])
    back, same = changed(later, moved, {v: vectors[catalogue.video_ids.index(v)] for v in "ab"}, ["c"])
    assert back.version == catalogue.version
    np.testing.assert_array_equal(same, vectors)


@pytest.mark.parametrize(
    ("add", "remove", "says"),
    [
        ({}, ["nope"], "remove: 'nope' not in the corpus"),
        ({"a": np.ones(5)}, ["a"], r"videos \['a'\] are to be added and removed"),
        ({"c": np.ones(4)}, [], "the vector of 'c' has 4 numbers, the index 5"),
        ({"c": np.zeros(5)}, [], r"vectors of \['c'\] are zero or not finite"),
        ({"c": np.full(5, np.nan)}, [], "zero or not finite"),
        ({}, IDS[:3], "holds 1 videos"),
    ],
)
def test_changes_that_do_not_fit(add, remove, says: str) -> None:
    with pytest.raises(RetrievalError, match=says):
        changed(*corpus(), add, remove)


@pytest.mark.parametrize("ending", [".faiss", ".ids.json", ".json"])
@pytest.mark.parametrize("fault", ["truncated", "missing"])
def test_a_damaged_snapshot_is_refused(tmp_path: Path, ending: str, fault: str) -> None:
    catalogue, vectors = corpus()
    write_snapshot(tmp_path, catalogue, vectors, embedder="e", source="s")
    path = tmp_path / f"index-{catalogue.version}{ending}"
    if fault == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(RetrievalError, match=r"is missing|differs from its manifest|not a snapshot's|is not in"):
        read_snapshot(tmp_path, catalogue.version)


def test_an_unknown_version_names_those_that_exist(tmp_path: Path) -> None:
    catalogue, vectors = corpus()
    write_snapshot(tmp_path, catalogue, vectors, embedder="e", source="s")
    for call in (lambda: read_snapshot(tmp_path, "x"), lambda: set_current(tmp_path, "x")):
        with pytest.raises(RetrievalError, match=rf"version 'x' is not in .*{catalogue.version}"):
            call()


def test_a_full_disk_leaves_no_part_of_a_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue, vectors = corpus()

    def full(target: Path, value: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "write_json", full)
    with pytest.raises(RetrievalError, match=r"cannot be written to .*No space left on device"):
        write_snapshot(tmp_path, catalogue, vectors, embedder="e", source="s")
    assert list(tmp_path.iterdir()) == []


def test_prepared_embeddings_serve_until_a_snapshot_is_current(tmp_path: Path) -> None:
    folder = dataset(tmp_path)
    first = open_current(folder, "test")
    assert (first.embedder, first.source) == ("e", first.catalogue.version)
    catalogue, vectors = changed(first.catalogue, first.vectors, {"c": np.ones(5)}, [])
    index = folder.index("test").parent
    write_snapshot(index, catalogue, vectors, embedder="e", source=first.source)
    assert open_current(folder, "test").catalogue == first.catalogue
    set_current(index, catalogue.version)
    assert open_current(folder, "test").catalogue == catalogue


def test_embeddings_that_were_built_again_are_not_hidden_by_an_old_snapshot(tmp_path: Path) -> None:
    folder = dataset(tmp_path)
    first = open_current(folder, "test")
    index = folder.index("test").parent
    write_snapshot(index, first.catalogue, first.vectors, embedder="e", source=first.source)
    set_current(index, first.catalogue.version)
    np.save(folder.video_embeddings("test"), corpus(seed=1)[1])
    with pytest.raises(RetrievalError, match=r"was made from embeddings .*: remove current\.json"):
        open_current(folder, "test")
