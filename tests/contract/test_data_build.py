"""Dataset construction on a real Ray: the folder it leaves, what it does with bad videos, and what it keeps."""

import json
import runpy
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from pipelines.data.build import BuildError, BuildReport, build_dataset
from vsr1.config import Config
from vsr1.formats.atomic import read_lines
from vsr1.formats.dataset import DatasetFolder
from vsr1.retrieval.corpus import load_corpus
from vsr1.video.clips import ClipFolder

pytestmark = pytest.mark.usefixtures("ray_cluster")
TRAIN, TEST = 6, 4  # videos of `corpus`


stand_in = runpy.run_path(str(Path(__file__).parent / "stand_in_embedder.py"))["stand_in"]


@pytest.fixture(scope="module")
def built(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[DatasetFolder, BuildReport]:
    root = tmp_path_factory.mktemp("built") / "toy"
    shutil.copytree(corpus, root)
    return DatasetFolder(root), build(root)


@pytest.fixture
def fresh(corpus: Path, tmp_path: Path) -> DatasetFolder:
    return DatasetFolder(Path(shutil.copytree(corpus, tmp_path / "toy")))


def build(root: Path, embedder: Any = None, **data: Any) -> BuildReport:
    config = Config.model_validate({"data": {"root": root, "embed_batch": 4} | data})
    return build_dataset(config, embedder_class=embedder or stand_in())


def test_the_parts_of_a_built_folder_agree(built: tuple[DatasetFolder, BuildReport]) -> None:
    folder, report = built
    assert [(s.split, s.videos, s.decoded, s.queries) for s in report.splits] == [
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
    assert len(json.loads(folder.sft_records().read_text())) == report.sft_records == 2 * TRAIN
    assert len(read_lines(folder.grpo_records())) == report.grpo_records
    assert json.loads(folder.grpo_stats().read_text())["rows_written"] == report.grpo_records
    assert {len(ids) for ids in json.loads(folder.hard_negatives().read_text()).values()} == {TRAIN - 1}
    assert len(read_lines(folder.top1_pool())) == len(read_lines(folder.reasoning())) == 2 * TRAIN
    assert "train: 6 videos" in report.line()
    assert "16 steps built, 0 kept" in report.line()
    assert report.table().row_count == len(report.steps) == 16
    assert not [path for path in folder.root.rglob("*") if ".part-" in path.name]


def test_a_second_build_keeps_the_clips_and_writes_the_same(built: tuple[DatasetFolder, BuildReport]) -> None:
    folder, _ = built
    files = [path for path in folder.root.rglob("*") if path.is_file() and path.name != "failed_videos.jsonl"]
    before = {path: path.read_bytes() for path in files}
    stamps = {path: path.stat().st_mtime_ns for path in folder.clips("train").glob("*.npy")}
    report = build(folder.root, embed_workers=2)
    assert [(s.decoded, s.reused) for s in report.splits] == [(0, TRAIN), (0, TEST)]
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert {path: path.read_bytes() for path in files} == before


def test_another_sampling_decodes_again(fresh: DatasetFolder) -> None:
    build(fresh.root, splits=["test"])
    report = build(fresh.root, splits=["test"], max_frames=8)
    assert (report.splits[0].decoded, report.splits[0].reused) == (TEST, 0)
    assert all(row["output_num_frames"] == 8 for row in read_lines(fresh.clips("test") / "meta.jsonl"))


def test_bad_videos_are_named_and_stop_the_build(fresh: DatasetFolder) -> None:
    raw = fresh.raw_videos("train")
    (raw / "train_0001.mp4").write_bytes(b"")
    (raw / "train_0002.mp4").write_bytes(b"not a video" * 100)
    (raw / "train_0003.mp4").unlink()
    with pytest.raises(BuildError, match=r"(?s)3 of 6 videos.*train_0001.*failed_videos\.jsonl"):
        build(fresh.root)
    failures = read_lines(fresh.clips("train") / "failed_videos.jsonl")
    assert [row["video_id"] for row in failures] == ["train_0001", "train_0002", "train_0003"]
    assert "empty" in failures[0]["error"]
    assert "no video file" in failures[2]["error"]
    assert not fresh.video_embeddings("train").exists()

    report = build(fresh.root, max_failed_fraction=0.5)
    train = report.splits[0]
    assert (train.videos, train.reused, train.decoded, train.failed) == (3, 3, 0, 3)
    assert (train.queries, train.dropped_queries) == (3, 3)
    kept = {"train_0000", "train_0004", "train_0005"}
    assert {row["pos_doc_id"] for row in read_lines(fresh.query_meta("train"))} == kept
    assert set(json.loads(fresh.id_map("train").read_text())) == kept


def test_clips_without_source_videos_are_enough(fresh: DatasetFolder) -> None:
    build(fresh.root, splits=["test"])
    shutil.rmtree(fresh.raw_videos("test"))
    assert build(fresh.root, splits=["test"]).splits[0].reused == TEST
    meta = (fresh.clips("test") / "meta.jsonl").read_bytes()
    shutil.rmtree(fresh.root / ".vsr1")  # as in a folder that was prepared elsewhere
    assert build(fresh.root, splits=["test"]).splits[0].reused == TEST
    assert (fresh.clips("test") / "meta.jsonl").read_bytes() == meta
    assert read_lines(fresh.corpus("test"))[0]["video_path"].endswith("test_0000.npy")


def test_training_records_need_a_teacher_and_that_shows_before_anything_is_decoded(fresh: DatasetFolder) -> None:
    fresh.events("train").unlink()
    with pytest.raises(BuildError, match="kind=rules knows the toy corpus only"):
        build(fresh.root)
    assert not fresh.clips("test").exists()
    assert build(fresh.root, splits=["test"]).sft_records == 0


class Teacher(BaseHTTPRequestHandler):
    """An OpenAI-compatible server with one answer for right videos and none for wrong ones."""

    def do_POST(self) -> None:
        words = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][1]["content"][0]["text"]
        message = {"role": "assistant", "content": "Reasoning: as it is" if "begins at" in words else "Reasoning:"}
        choices = [{"index": 0, "finish_reason": "stop", "message": message}]
        payload = json.dumps({"id": "", "object": "chat.completion", "created": 0, "model": "", "choices": choices})
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(payload.encode())

    def log_message(self, *args: Any) -> None:
        """Quiet."""


def test_a_corpus_without_events_is_built_with_a_model_as_teacher(fresh: DatasetFolder) -> None:
    fresh.events("train").unlink()
    with ThreadingHTTPServer(("127.0.0.1", 0), Teacher) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        teacher = {"kind": "openai", "model": "m", "url": f"http://127.0.0.1:{server.server_port}", "attempts": 1}
        with pytest.raises(BuildError, match=rf"for {TRAIN} of {2 * TRAIN} pairs .*the reasoning is empty"):
            build(fresh.root, splits=["train"], teacher=teacher)
        report = build(fresh.root, splits=["train"], teacher=teacher | {"max_failed_fraction": 0.5})
        server.shutdown()
        thread.join()
    assert report.sft_records == TRAIN
    records = json.loads(fresh.sft_records().read_text())
    assert {record["meta"]["gold_label"] for record in records} == {"pos"}
    assert records[0]["messages"][2]["content"].startswith("<think> as it is </think> <answer>matched</answer>")
    assert len(read_lines(fresh.top1_pool())) == 2 * TRAIN


def test_vectors_that_are_not_unit_vectors_are_refused(fresh: DatasetFolder) -> None:
    class Long(stand_in()):  # type: ignore[misc]
        def embed_clips(self, clips: list[Any]) -> np.ndarray:
            return 2 * np.stack([self._vector(clip.content_hash) for clip in clips])

    with pytest.raises(BuildError, match="vector of video 'test_0000' has length 2"):
        build(fresh.root, Long, splits=["test"])


def test_compact_clips_are_built_kept_and_replaced_when_the_storage_changes(fresh: DatasetFolder) -> None:
    first = build(fresh.root, clip_storage="compact")
    assert [split.decoded for split in first.splits] == [TRAIN, TEST]
    for row in read_lines(fresh.clips("test") / "meta.jsonl"):
        assert row["output_compact_path"] == f"test/video_npy_with_meta/{row['video_id']}.mkv"
        assert "output_npy_path" not in row
    clips = ClipFolder(fresh.clips("test"))
    hashes = [clips.read(video_id).content_hash for video_id in clips.video_ids()]
    again = build(fresh.root, clip_storage="compact")
    assert [(split.decoded, split.reused) for split in again.splits] == [(0, TRAIN), (0, TEST)]
    assert [clips.read(video_id).content_hash for video_id in clips.video_ids()] == hashes
    raw = build(fresh.root)
    assert [split.decoded for split in raw.splits] == [TRAIN, TEST]
    assert {path.suffix for path in fresh.clips("test").iterdir()} == {".npy", ".jsonl"}
