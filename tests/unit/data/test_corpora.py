"""Corpora of one's own: few keys, videos elsewhere, odd names, and videos alone for search."""

import json
import shutil
import unicodedata
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from pipelines.data.build import BuildError
from vsr1.formats.annotations import AnnotationError
from vsr1.formats.atomic import read_lines
from vsr1.formats.dataset import DatasetFolder
from vsr1.retrieval.corpus import load_corpus
from vsr1.video.clips import ClipFolder

from . import builds

build = partial(builds.build, splits=["test"], embed_batch=3)
NAMES = ["a day at sea", "köln", "ビデオ", "x.y"]


@pytest.fixture(scope="module")
def films(corpus: Path) -> list[Path]:
    return sorted(DatasetFolder(corpus).raw_videos("test").iterdir())


@pytest.fixture
def videos(films: list[Path], tmp_path: Path) -> Path:
    """Videos in sub-folders, their names taken apart as some file systems do, and files that are not of the corpus."""
    folder = tmp_path / "my videos"
    for number, (film, name) in enumerate(zip(films, NAMES, strict=True)):
        place = folder / f"part {number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(film, place / f"{unicodedata.normalize('NFD', name)}.MP4")
    (folder / "._köln.mp4").write_bytes(b"")
    (folder / ".trash").mkdir()
    shutil.copyfile(films[0], folder / ".trash" / "old.mp4")
    (folder / "notes.txt").touch()
    return folder


def test_four_keys_and_videos_elsewhere_are_enough(videos: Path, tmp_path: Path) -> None:
    source = tmp_path / "mine.jsonl"
    asked = [{"video": name, "fig_desc": f"where is {name}?", "time": [0, 5], "duration": 33} for name in NAMES]
    source.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in asked), encoding="utf-8")
    folder = DatasetFolder(tmp_path / "data")
    report = build(folder.root, videos=videos, annotations={"test": source})
    assert (len(report.splits[0].clips), len(report.splits[0].left.annotations)) == (4, 4)
    assert folder.annotations("test").read_bytes() == source.read_bytes()
    queries = read_lines(folder.query_meta("test"))
    assert [row["qid"] for row in queries] == ["0_fig", "1_fig", "2_fig", "3_fig"]
    assert [row["pos_doc_id"] for row in queries] == NAMES
    catalogue, _ = load_corpus(folder.video_embeddings("test"), folder.docid2row("test"))
    assert catalogue.video_ids == sorted(NAMES)
    assert all(Path(row["video_path"]).is_relative_to(videos) for row in read_lines(folder.corpus("test")))
    again = build(folder.root, videos=videos, annotations={"test": source})
    assert {step.status for step in again.steps} == {"kept"}


def test_an_annotation_file_that_is_not_there_is_named(videos: Path, tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"none\.jsonl does not exist; put the split's annotations there"):
        build(tmp_path / "data", videos=videos, annotations={"test": tmp_path / "none.jsonl"})


def test_an_embedder_that_is_not_there_is_named_with_its_option(videos: Path, tmp_path: Path) -> None:
    """As where the command is started in another folder than that of the default checkpoints."""
    with pytest.raises(FileNotFoundError, match=r"model\.embedder=.*nowhere: the folder does not exist"):
        build(tmp_path / "data", {"model": {"embedder": tmp_path / "nowhere"}}, videos=videos, search_only=True)


def test_videos_alone_become_a_corpus_to_search(videos: Path, tmp_path: Path) -> None:
    folder = DatasetFolder(tmp_path / "data")
    report = build(folder.root, videos=videos, search_only=True)
    assert (len(report.splits[0].clips), report.recall, report.records) == (4, {}, {})
    assert [step.name for step in report.steps] == ["clips", "embedding", "video_embedding", "index"]
    assert "test: 4 videos (4 decoded, 0 kept, 0 failed), 0 queries (0 dropped);" in report.line()
    corpus = read_lines(folder.corpus("test"))
    assert [row["doc_id"] for row in corpus] == sorted(NAMES) == json.loads(folder.id_map("test").read_text())
    meta = {row["video_id"]: row for row in read_lines(folder.clips("test") / "meta.jsonl")}
    assert all(row["duration"] == row["end"] == meta[row["doc_id"]]["source_duration_sec"] > 0 for row in corpus)
    assert ClipFolder(folder.clips("test")).read("ビデオ").frames.dtype == np.uint8
    assert not folder.query_embeddings("test").exists()
    assert not folder.queries("test").exists()


def test_a_corpus_with_two_files_of_one_id_or_none_is_refused(videos: Path, films: list[Path], tmp_path: Path) -> None:
    shutil.copyfile(films[0], videos / "part 1" / "köln.mp4")
    with pytest.raises(BuildError, match=r"'part 1/köln' \(.*MP4, .*mp4\); keep one file of each"):
        build(tmp_path / "data", videos=videos, search_only=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BuildError, match=r"empty has no video files \(\.mp4, .*set data\.videos"):
        build(tmp_path / "data", videos=tmp_path / "empty", search_only=True)
