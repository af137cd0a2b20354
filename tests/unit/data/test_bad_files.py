"""One bad file stops nothing: 200 files of many kinds, 40 of them bad in different ways, checked and built."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.data.build import BuildError
from vsr1.formats.atomic import read_lines, write_lines
from vsr1.formats.dataset import DatasetFolder
from vsr1.video.clips import ClipFolder

from .bad_files import film, mixed_folder
from .builds import Here, build, built_steps, stand_in

GOOD = 160


class Narrow(stand_in()):  # type: ignore[misc]
    """Refuses ribbons, as the processor of a vision model does."""

    def embed_clips(self, clips: list[Any]) -> np.ndarray:
        for clip in clips:
            high, wide = clip.frames.shape[1:3]
            if max(high, wide) / min(high, wide) > 200:
                raise ValueError(f"absolute aspect ratio must be smaller than 200, got {wide / high}")
        return super().embed_clips(clips)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], list[str]]:
    """A folder, and annotations of 160 good and 40 bad videos: one of these has no file, two are of another length."""
    root = tmp_path_factory.mktemp("mixed")
    good, bad = mixed_folder(root / "videos", GOOD)
    for seconds in (3, 12):
        film(root / "videos" / f"bad length {seconds}.mp4", seconds=seconds)
    bad += ["bad length 3", "bad length 12", "bad missing"]
    write_lines(
        root / "test.jsonl",
        [{"video": name, "fig_desc": f"what is in {name}", "time": [1, 2], "duration": 6} for name in [*good, *bad]],
    )
    return root, good, bad


def test_40_bad_files_of_200_are_named_and_160_are_built(mixed: tuple[Path, list[str], list[str]]) -> None:
    root, good, bad = mixed
    assert (len(good), len(bad)) == (160, 40)
    options = {"videos": root / "videos", "annotations": {"test": root / "test.jsonl"}, "max_failed_fraction": 0.2}
    report = build(root / "data", embedder=Narrow, embed_batch=8, **options)
    folder = DatasetFolder(root / "data")
    failures = {row["video_id"]: row for row in read_lines(folder.failed_videos("test"))}
    assert set(failures) ^ set(bad) == set()
    assert len(report.splits[0].clips) == 160
    assert "test: 160 videos (160 decoded, 0 kept, 40 failed), 160 queries (40 dropped)" in report.line()
    assert {row["step"] for row in failures.values()} == {"find", "read", "decode", "compare", "embed"}
    assert all(row["error"] and row["source_video_path"].startswith(str(root / "videos")) for row in failures.values())
    assert "absolute aspect ratio" in failures["bad ribbon"]["error"]
    assert ClipFolder(folder.clips("test")).video_ids() == sorted(good)
    assert [row["doc_id"] for row in read_lines(folder.corpus("test"))] == sorted(good)
    vectors = np.load(folder.video_embeddings("test"))
    assert vectors.shape[0] == 160 and np.isfinite(vectors).all()
    assert len(np.load(folder.query_embeddings("test"))) == len(read_lines(folder.query_meta("test"))) == 160
    workers = Here()
    assert built_steps(build(root / "data", embedder=Narrow, embed_batch=8, workers=workers, **options)) == set()
    assert (workers.decoded, workers.embedded) == (2, 0)  # a link and a pipe have no content to know again
    with pytest.raises(BuildError, match=r"40 of 200 videos of split 'test' gave no clip"):
        build(root / "data", embedder=Narrow, embed_batch=8, **options | {"max_failed_fraction": 0.199})
    workers = Here()
    assert len(build(root / "data", embed_batch=8, workers=workers, **options).splits[0].clips) == 161
    assert workers.embedded == 1  # another embedder takes the ribbon; what was embedded is kept


def test_the_check_names_what_it_can_without_a_traceback(mixed: tuple[Path, list[str], list[str]]) -> None:
    root, _, bad = mixed
    result = CliRunner().invoke(
        app,
        ["data", "check", "--json", f"data.root={root / 'data'}", f"data.videos={root / 'videos'}",
         f"data.annotations={{test: {root / 'test.jsonl'}}}"],
    )  # fmt: skip
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert result.stdout, result.stderr
    check = json.loads(result.stdout)["test"]
    named = {*check["missing"], *check["undecodable"], *check["mismatched"]}
    assert named <= set(bad) and len(named) >= 35
    assert set(check["mismatched"]) == {"bad length 3", "bad length 12"}


def test_names_of_any_bytes_and_any_length(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    content = film(tmp_path / "film.mp4")
    names = [
        b"caf\xe9.mp4",
        b"\xff\xfe.mp4",
        b"n" * 251 + b".mp4",
        "ä".encode() * 124 + b".mp4",
        b"x" * 252 + b".ts",
        b"z.mp4",
    ]
    videos.mkdir()
    for name in names:
        (Path(os.fsdecode(os.path.join(os.fsencode(videos), name)))).write_bytes(content)
    folder = DatasetFolder(tmp_path / "data")
    report = build(folder.root, videos=videos, search_only=True, max_failed_fraction=0.2)
    assert sorted(report.splits[0].clips) == sorted(["caf%E9", "%FF%FE", "n" * 251, "ä" * 124, "z"])
    assert [(row["video_id"], row["step"]) for row in read_lines(folder.failed_videos("test"))] == [
        ("x" * 252, "store")
    ]
    meta = {row["video_id"]: row["source_video_path"] for row in read_lines(folder.clips("test") / "meta.jsonl")}
    assert os.fsencode(meta["caf%E9"]).endswith(b"caf\xe9.mp4") and Path(meta["caf%E9"]).is_file()
    assert build(folder.root, videos=videos, search_only=True, max_failed_fraction=0.2).splits[0].decoded == 0


def test_what_lies_somewhere_below_is_found(tmp_path: Path) -> None:
    content, other = film(tmp_path / "film.mp4"), tmp_path / "other disk"
    videos = tmp_path / "videos"
    for place in (videos / "a", videos / "b", other):
        place.mkdir(parents=True)
        (place / "IMG_0001.MOV").write_bytes(content)
    (videos / "linked").symlink_to(other)
    (other / "back").symlink_to(videos)
    (videos / "one.mp4").write_bytes(content)
    (videos / "spare.mpg").write_bytes(content)
    (videos / "camera.xyz").write_bytes(content)
    names = ["a/IMG_0001", "b/IMG_0001.MOV", "camera.xyz", "linked/IMG_0001", "one.mp4"]
    rows = [{"video": name, "fig_desc": name, "time": [1, 2], "duration": 6} for name in names]
    write_lines(tmp_path / "test.jsonl", rows)
    folder, options = (
        DatasetFolder(tmp_path / "data"),
        {"videos": videos, "annotations": {"test": tmp_path / "test.jsonl"}},
    )
    report = build(folder.root, **options)
    assert list(report.splits[0].clips) == names
    clips = ClipFolder(folder.clips("test"))
    assert clips.video_ids() == names and clips.read("a/IMG_0001").video_id == "a/IMG_0001"
    assert built_steps(build(folder.root, **options)) == set()
    result = CliRunner().invoke(
        app, ["data", "check", f"data.root={folder.root}", f"data.videos={videos}",
              f"data.annotations={{test: {tmp_path / 'test.jsonl'}}}"]
    )  # fmt: skip
    assert result.exit_code == 0, result.stdout + result.stderr
    assert "spare.mpg is unused" in result.stdout
    alone = build(tmp_path / "alone", videos=videos, search_only=True)
    assert [split.split for split in alone.splits] == ["test"]
    assert {"a/IMG_0001", "b/IMG_0001", "linked/IMG_0001", "one", "spare"} == set(alone.splits[0].clips)


def test_a_video_of_another_length_is_kept_with_its_true_one_if_that_is_asked(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in "abc":
        film(videos / f"{name}.mp4")
    whole = (videos / "c.mp4").read_bytes()
    (videos / "c.mp4").write_bytes(whole[: int(len(whole) * 0.7)])
    rows = [("a", [1, 2], 6), ("b", [1, 2], 10), ("b", [8, 9], 10), ("c", [0, 1], 6), ("c", [5, 6], 6)]
    write_lines(
        tmp_path / "test.jsonl",
        [{"video": v, "fig_desc": f"{v} {t}", "time": t, "duration": d} for v, t, d in rows],
    )
    folder, options = (
        DatasetFolder(tmp_path / "data"),
        {"videos": videos, "annotations": {"test": tmp_path / "test.jsonl"}},
    )
    with pytest.raises(BuildError, match=r"2 of 3 videos .*b: annotated as 10\.0 s, the file has 6\.0 s"):
        build(folder.root, **options)
    report = build(folder.root, other_length="keep", **options)
    assert (list(report.splits[0].clips), report.splits[0].decoded) == (["a", "b", "c"], 1)
    lengths = {row["doc_id"]: row["duration"] for row in read_lines(folder.corpus("test"))}
    assert (lengths["a"], lengths["b"]) == (6, 6) and 3 < lengths["c"] < 5
    lost = [(row["video_id"], row["time"]) for row in read_lines(folder.lost_moments("test"))]
    assert lost == [("b", [8, 9]), ("c", [5, 6])]
    assert len(read_lines(folder.query_meta("test"))) == 3
    with pytest.raises(BuildError, match="2 of 3 videos"):
        build(folder.root, **options)


def test_faulty_rows_are_dropped_into_a_list_if_that_is_asked(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in "ab":
        film(videos / f"{name}.mp4")
    rows = [("a", [1, 2]), ("b", [2, 1]), ("b", [3, 4])]
    (tmp_path / "test.json").write_text(
        json.dumps([{"video": v, "fig_desc": "q", "time": t, "duration": 6} for v, t in rows]), encoding="utf-16"
    )
    folder = DatasetFolder(tmp_path / "data")
    options = {"videos": videos, "annotations": {"test": tmp_path / "test.json"}}
    report = build(folder.root, faulty_rows="drop", **options)
    assert [row.time for row in report.splits[0].left.annotations] == [(1, 2), (3, 4)]
    assert [row["place"] for row in read_lines(folder.dropped_rows("test"))] == ["entry 2"]
    assert [row["time"] for row in read_lines(folder.annotations("test"))] == [[1, 2], [3, 4]]


def test_a_folder_that_does_not_exist_is_one_line(tmp_path: Path) -> None:
    write_lines(
        tmp_path / "test.jsonl", [{"video": v, "fig_desc": "q", "time": [1, 2], "duration": 6} for v in "abcdef"]
    )
    options = [f"data.root={tmp_path / 'data'}", f"data.annotations={{test: {tmp_path / 'test.jsonl'}}}"]
    for more in ([f"data.videos={tmp_path / 'none'}"], []):
        result = CliRunner().invoke(app, ["data", "check", *options, *more])
        assert result.exit_code == 1
        lines = [line for line in (result.stdout + result.stderr).splitlines() if "does not exist" in line]
        assert len(lines) == 1 and "no video file" not in result.stdout
