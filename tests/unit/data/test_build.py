"""The folder that a build leaves: its parts agree, and a second build changes nothing."""

import json
import subprocess
import sys

import faiss
import numpy as np
import pytest

from pipelines.data.build import ensure_world
from pipelines.stage.tasks import training_tasks
from pipelines.train.record_checks import check_grpo_records
from vsr1.config import Config
from vsr1.formats.atomic import read_lines
from vsr1.formats.dataset import DatasetFolder
from vsr1.retrieval.corpus import load_corpus
from vsr1.video.clips import ClipFolder

from .builds import build, built_steps, stand_in

TRAIN, TEST = 6, 4  # videos of `corpus`


def test_the_parts_of_a_built_folder_agree(fresh: DatasetFolder) -> None:
    folder, report = fresh, build(fresh.root)
    assert [(s.split, len(s.clips), s.decoded, len(s.left.annotations)) for s in report.splits] == [
        ("train", TRAIN, TRAIN, TRAIN), ("test", TEST, TEST, TEST),
    ]  # fmt: skip
    embedder = stand_in().load(Config().model.embedder, device="cpu", dtype="float32")
    for split in ("train", "test"):
        annotations = read_lines(folder.annotations(split))
        queries = read_lines(folder.query_meta(split))
        assert [row["qid"] for row in queries] == [f"{row['desc_id']}_fig" for row in annotations]
        assert queries == read_lines(folder.queries(split))
        vectors = np.load(folder.query_embeddings(split))
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(vectors, embedder.embed_queries([row["query"] for row in queries]), atol=1e-6)
        clips = ClipFolder(folder.clips(split))
        catalogue, unit = load_corpus(folder.video_embeddings(split), folder.docid2row(split))
        assert catalogue.video_ids == clips.video_ids() == json.loads(folder.id_map(split).read_text())
        np.testing.assert_allclose(unit, embedder.embed_clips([clips.read(v) for v in catalogue.video_ids]), atol=1e-6)
        index = faiss.read_index(str(folder.index(split)))
        np.testing.assert_array_equal(index.reconstruct_n(0, index.ntotal), np.load(folder.video_embeddings(split)))
        corpus_rows = read_lines(folder.corpus(split))
        assert [row["doc_id"] for row in corpus_rows] == catalogue.video_ids
        assert all((folder.root / row["video_path"]).is_file() for row in corpus_rows)
        assert [row["doc_id"] for row in read_lines(folder.video_meta(split))] == catalogue.video_ids
        best = [catalogue.video_ids[row] for row in (vectors @ unit.T).argmax(axis=1)]
        share = np.mean([row["pos_doc_id"] == video for row, video in zip(queries, best, strict=True)])
        assert report.recall[split] == pytest.approx(share)
    assert len(json.loads(folder.sft_records().read_text())) == report.records["sft_records"]["rows"] == 2 * TRAIN
    assert len(read_lines(folder.grpo_records())) == report.records["grpo_records"]["rows"]
    assert json.loads(folder.grpo_stats().read_text())["rows_written"] == report.records["grpo_records"]["rows"]
    assert {len(ids) for ids in json.loads(folder.hard_negatives().read_text()).values()} == {TRAIN - 1}
    assert len(read_lines(folder.top1_pool())) == len(read_lines(folder.reasoning())) == 2 * TRAIN
    assert "train: 6 videos" in report.line()
    assert "16 steps built, 0 kept" in report.line()
    assert report.table().row_count == len(report.steps) == 16
    assert not [path for path in folder.root.rglob("*") if ".part-" in path.name]


def test_a_second_build_keeps_the_clips_and_writes_the_same(copy: DatasetFolder) -> None:
    folder = copy
    files = [path for path in folder.root.rglob("*") if path.is_file() and path.name != "failed_videos.jsonl"]
    before = {path: path.read_bytes() for path in files}
    stamps = {path: path.stat().st_mtime_ns for path in folder.clips("train").glob("*.npy")}
    report = build(folder.root, embed_workers=2)
    assert [(s.decoded, len(s.clips)) for s in report.splits] == [(0, TRAIN), (0, TEST)]
    assert built_steps(report) == set()
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert {path: path.read_bytes() for path in files} == before


def test_without_a_teacher_there_is_what_stage_2_needs_and_no_traces(fresh: DatasetFolder) -> None:
    report = build(fresh.root, teacher={"kind": "none"})
    assert set(report.records) == {"hard_negatives", "grpo_records"}
    assert "no SFT and" in report.line()
    assert not fresh.sft_records().exists() and not fresh.reasoning().exists()
    settings = Config.model_validate({"data": {"root": fresh.root}})
    check_grpo_records(settings)
    assert len({task.gt_video for task in training_tasks(settings)}) == TRAIN
    with_traces = build(fresh.root)
    assert built_steps(with_traces) == {"train.top1_pool", "train.reasoning", "train.sft_records"}


def test_a_build_of_the_toy_world_begins_with_its_videos(tmp_path):
    toy = {"create": True, "train": 2, "test": 2, "val": 0}
    config = Config.model_validate({"data": {"root": tmp_path}, "toy": toy})
    assert ensure_world(config)
    folder = DatasetFolder(tmp_path)
    assert [len(list(folder.raw_videos(split).iterdir())) for split in ("train", "test")] == [2, 2]
    written = folder.annotations("test").stat().st_mtime_ns
    assert ensure_world(config) and folder.annotations("test").stat().st_mtime_ns == written  # a build goes on
    own = config.model_copy(update={"toy": config.toy.model_copy(update={"create": False})})
    assert not ensure_world(own)


def test_films_that_nothing_searches_need_no_build(tmp_path):
    settings = [f"data.root={tmp_path}", "toy.create=true", "toy.train=2", "toy.test=2", "navigate.toy_minutes=[10]"]
    command = [sys.executable, "-m", "pipelines", "data", "build", "environment=navigate", "agent.refinement=none"]
    done = subprocess.run([*command, *settings], capture_output=True, text=True, check=True)
    assert "searches nothing" in done.stdout
    assert (tmp_path / "navigate" / "test.questions.jsonl").is_file()
