"""What becomes of the videos of a split: clips that are kept or made again, failures, and clips without a source."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.data import clips as data_clips
from pipelines.data.build import BuildError
from pipelines.data.clips import FileState, make_clip_row, read_journal
from pipelines.data.embed import Item, cut_items
from vsr1.formats.atomic import read_lines
from vsr1.formats.dataset import DatasetFolder
from vsr1.settings.data import DataConfig
from vsr1.video.clips import ClipFolder

from .builds import Here, build

TRAIN, TEST = 6, 4  # videos of `corpus`


def test_another_sampling_decodes_again(copy: DatasetFolder) -> None:
    report = build(copy.root, splits=["test"], max_frames=8)
    assert (len(report.splits[0].clips), report.splits[0].decoded) == (TEST, TEST)
    assert all(row["output_num_frames"] == 8 for row in read_lines(copy.clips("test") / "meta.jsonl"))


def test_a_full_disk_is_no_failure_of_the_video(fresh: DatasetFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(data_clips, "make_clip", full)
    with pytest.raises(BuildError, match=r"clip of 'test_0000': .*No space left"):
        build(fresh.root, splits=["test"])
    assert not fresh.failed_videos("test").exists()


def test_a_touched_source_is_hashed_and_its_clip_kept(copy: DatasetFolder) -> None:
    before = read_journal(copy.clips_journal("test"))["test_0000"]
    source = copy.raw_videos("test") / "test_0000.mp4"
    os.utime(source)
    assert build(copy.root, splits=["test"]).splits[0].decoded == 0
    after = read_journal(copy.clips_journal("test"))["test_0000"]
    assert before["source"].changed_ns != after["source"].changed_ns
    assert after["source"] == FileState.of(source)
    assert (before["source"].sha256, before["meta"], before["clip"]) == (
        after["source"].sha256, after["meta"], after["clip"],
    )  # fmt: skip


def test_bad_videos_are_named_and_tried_again_when_they_change(fresh: DatasetFolder) -> None:
    raw = fresh.raw_videos("train")
    whole = (raw / "train_0001.mp4").read_bytes()
    (raw / "train_0001.mp4").write_bytes(b"")
    (raw / "train_0002.mp4").write_bytes(b"not a video" * 100)
    (raw / "train_0003.mp4").unlink()
    workers = Here()
    with pytest.raises(BuildError, match=r"1 of 6 videos .* nothing is decoded yet \(train_0003: no video"):
        build(fresh.root, workers=workers)
    assert workers.decoded == 0
    with pytest.raises(BuildError, match=r"(?s)3 of 6 videos.*train_0001.*failed_videos\.jsonl"):
        build(fresh.root, max_failed_fraction=0.2)
    failures = read_lines(fresh.failed_videos("train"))
    assert [row["step"] for row in failures] == ["decode", "decode", "find"]
    assert [row["video_id"] for row in failures] == ["train_0001", "train_0002", "train_0003"]
    assert "empty" in failures[0]["error"]
    assert "no video file" in failures[2]["error"]
    assert not fresh.video_embeddings("train").exists()

    workers = Here()
    report = build(fresh.root, max_failed_fraction=0.5, workers=workers)
    train = report.splits[0]
    assert (len(train.clips), train.decoded, len(train.failures), workers.decoded) == (3, 0, 3, TEST)
    assert (len(train.left.annotations), len(train.manifest.annotations)) == (3, 6)
    assert "train: 3 videos (0 decoded, 3 kept, 3 failed), 3 queries (3 dropped)" in report.line()
    left = {"train_0000", "train_0004", "train_0005"}
    assert {row["pos_doc_id"] for row in read_lines(fresh.query_meta("train"))} == left
    assert set(json.loads(fresh.id_map("train").read_text())) == set(read_journal(fresh.clips_journal("train"))) == left

    (raw / "train_0001.mp4").write_bytes(whole)
    train = build(fresh.root, max_failed_fraction=0.5).splits[0]
    assert (train.decoded, list(train.failures)) == (1, ["train_0002", "train_0003"])


def test_a_source_that_cannot_be_read_is_a_failure(fresh: DatasetFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(data_clips, "file_sha256", refused)
    with pytest.raises(BuildError, match=r"test_0000: cannot be read \(Permission denied\)"):
        build(fresh.root, splits=["test"])


def test_clips_without_source_videos_are_enough(copy: DatasetFolder) -> None:
    shutil.rmtree(copy.raw_videos("test"))
    report = build(copy.root, splits=["test"])
    assert (len(report.splits[0].clips), report.splits[0].decoded) == (TEST, 0)
    meta = (copy.clips("test") / "meta.jsonl").read_bytes()
    shutil.rmtree(copy.root / ".vsr1")  # as in a folder that was prepared elsewhere
    again = build(copy.root, splits=["test"])
    assert (len(again.splits[0].clips), again.splits[0].decoded) == (TEST, 0)
    assert (copy.clips("test") / "meta.jsonl").read_bytes() == meta
    assert read_lines(copy.corpus("test"))[0]["video_path"].endswith("test_0000.npy")
    assert {row["source"] for row in read_journal(copy.clips_journal("test")).values()} == {None}
    with pytest.raises(BuildError, match="no video file of this name in"):
        build(copy.root, splits=["test"], max_frames=8)  # a prepared clip is not sampled as another


def test_a_clip_that_came_prepared_is_not_deleted_with_its_query(copy: DatasetFolder) -> None:
    shutil.rmtree(copy.raw_videos("test"))
    shutil.rmtree(copy.root / ".vsr1")
    build(copy.root, splits=["test"])
    rows = read_lines(copy.annotations("test"))
    last = rows[-1]["video"]
    data_clips.write_lines(copy.annotations("test"), [row for row in rows if row["video"] != last])
    assert last not in build(copy.root, splits=["test"]).splits[0].clips
    assert (copy.clips("test") / f"{last}.npy").is_file()


def test_a_prepared_clip_gives_way_to_its_source(copy: DatasetFolder) -> None:
    sources = copy.raw_videos("test").rename(copy.root / "hidden")
    shutil.rmtree(copy.root / ".vsr1")
    build(copy.root, splits=["test"])
    sources.rename(copy.raw_videos("test"))
    assert build(copy.root, splits=["test"]).splits[0].decoded == TEST
    assert build(copy.root, splits=["test"]).splits[0].decoded == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda clip: clip.write_bytes(clip.read_bytes()[:-1] + b"x"),
        lambda clip: clip.unlink(),
    ],
    ids=["damaged", "lost"],
)
def test_a_clip_that_is_not_as_it_was_left_is_made_again(
    copy: DatasetFolder, change: Callable[[Path], Any], built: Path
) -> None:
    clip = copy.clips("test") / "test_0001.npy"
    change(clip)
    assert build(copy.root, splits=["test"]).splits[0].decoded == 1
    assert clip.read_bytes() == (DatasetFolder(built).clips("test") / "test_0001.npy").read_bytes()


def test_compact_clips_are_built_kept_and_replaced_when_the_storage_changes(fresh: DatasetFolder) -> None:
    first = build(fresh.root, clip_storage="compact")
    assert [split.decoded for split in first.splits] == [TRAIN, TEST]
    for row in read_lines(fresh.clips("test") / "meta.jsonl"):
        assert row["output_compact_path"] == f"test/video_npy_with_meta/{row['video_id']}.mkv"
        assert "output_npy_path" not in row
    clips = ClipFolder(fresh.clips("test"))
    hashes = [clips.read(video_id).content_hash for video_id in clips.video_ids()]
    again = build(fresh.root, clip_storage="compact")
    assert [(split.decoded, len(split.clips)) for split in again.splits] == [(0, TRAIN), (0, TEST)]
    assert [clips.read(video_id).content_hash for video_id in clips.video_ids()] == hashes
    raw = build(fresh.root)
    assert [split.decoded for split in raw.splits] == [TRAIN, TEST]
    assert {path.suffix for path in fresh.clips("test").iterdir()} == {".npy", ".jsonl"}


def test_the_row_of_a_clip_names_places_in_the_dataset_folder(fresh: DatasetFolder) -> None:
    source = fresh.raw_videos("test") / "test_0000.mp4"
    job = json.dumps(["test_0000", str(source)])
    row = json.loads(make_clip_row(job, root=fresh.root, clips=fresh.clips("test"), data=DataConfig()))
    assert row["meta"]["source_video_path"] == "raw_videos/test/test_0000.mp4"
    assert row["meta"]["output_npy_path"] == "test/video_npy_with_meta/test_0000.npy"
    assert tuple(row["source"]) == FileState.of(source)


def test_batches_are_bounded_by_count_and_by_bytes() -> None:
    items = [Item(name, name, size) for name, size in dict(a=4, b=4, c=9, d=20, e=1, f=1, g=1).items()]
    cuts = [[item.name for item in cut] for cut in cut_items(items, 2, 10)]
    assert cuts == [["a", "b"], ["c"], ["d"], ["e", "f"], ["g"]]
    assert cut_items([], 2, 10) == []
