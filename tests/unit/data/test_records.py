"""Rankings and the training records cut from them, against a brute-force reading of the same scores."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.data.manifest import BuildError, Manifest, Video, load_manifest
from pipelines.data.records import (
    Ranking,
    grpo_records,
    hard_negatives,
    pool_rows,
    rank_videos,
    reasoned_rows,
    sft_records,
)
from vsr1.formats.annotations import Annotation
from vsr1.formats.dataset import DatasetFolder
from vsr1.settings.data import DataConfig
from vsr1.toy.world import Event

ROOT = Path("dataset")
FOLDER = DatasetFolder(ROOT)


def manifest(videos: int, queries_of: list[int]) -> Manifest:
    """Videos v0, v1, … of 20 s and one query for each number in `queries_of`, about the first 12 s of that video."""
    names = [f"v{i}" for i in range(videos)]
    return Manifest(
        "train",
        {name: Video(name, [FOLDER.raw_videos("train") / f"{name}.mp4"], 20.0) for name in names},
        [
            Annotation(video=names[video], time=(0.0, 12.0), desc_id=10 + i, duration=20.0, cog_desc="c",
                       fig_desc=f"query {i}", fig_desc_score=0.5)
            for i, video in enumerate(queries_of)
        ],
    )  # fmt: skip


def ranked(split: Manifest, scores: np.ndarray, depth: int = 50) -> list[Ranking]:
    """Rankings of given scores [queries, videos]: unit basis vectors as videos make a score a coordinate."""
    return rank_videos(split, np.float32(scores), np.eye(len(split.videos), dtype=np.float32), depth)


def two_hits_and_a_miss() -> tuple[Manifest, list[Ranking]]:
    split = manifest(4, [0, 1, 2])
    return split, ranked(split, np.array([[9, 1, 2, 3], [0, 9, 8, 7], [5, 4, 3, 2]]))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_ranks_are_those_of_sorting_by_score_then_id(data: st.DataObject) -> None:
    videos = data.draw(st.integers(2, 8))
    split = manifest(videos, data.draw(st.lists(st.integers(0, videos - 1), min_size=1, max_size=5)))
    scores = np.array([[data.draw(st.integers(-2, 2)) for _ in range(videos)] for _ in split.annotations])
    depth = data.draw(st.integers(1, 9))
    for row, annotation, ranking in zip(scores, split.annotations, ranked(split, scores, depth), strict=True):
        expected = [f"v{i}" for i in sorted(range(videos), key=lambda i, row=row: (-row[i], i))]
        assert [hit.video_id for hit in ranking.best] == expected[: depth + 1]
        assert ranking.truth.rank == expected.index(annotation.video) + 1
        wrong = [video for video in expected if video != annotation.video]
        assert [hit.video_id for hit in ranking.wrong(depth)] == wrong[:depth]


def test_the_pool_shows_each_query_one_right_and_one_wrong_video() -> None:
    split, rankings = two_hits_and_a_miss()
    assert [ranking.truth.rank for ranking in rankings] == [1, 1, 3]
    pool = pool_rows(FOLDER, split, rankings)
    assert [(row["pair_id"], row["gold_label"], row["top1_rank"], row["top1_score"]) for row in pool] == [
        ("10_fig::v0", "match", 1, 9.0),
        ("10_fig::v3", "not_match", 2, 3.0),
        ("11_fig::v1", "match", 1, 9.0),
        ("11_fig::v2", "not_match", 2, 8.0),
        ("12_fig::v0", "not_match", 1, 5.0),
        ("12_fig::gt", "match", 3, 3.0),
    ]
    assert pool[0]["top1_video_path"] == "raw_videos/train/v0.mp4"
    assert (pool[5]["gt_start"], pool[5]["gt_end"], pool[5]["gt_duration"]) == (0.0, 12.0, 12.0)


def events_of(*motions: str) -> list[Event]:
    return [Event(6 * i, 6 * i + 6, "red", "ring", motion) for i, motion in enumerate(motions)]


def test_conversations_follow_the_grammar_and_name_their_pair() -> None:
    split, rankings = two_hits_and_a_miss()
    shown = {
        "v0": events_of("up", "down", "left"),
        "v1": events_of("up", "left", "down"),
        "v2": events_of("left", "up"),
        "v3": events_of("right", "up"),
    }
    pool = pool_rows(FOLDER, split, rankings)
    rows, ambiguous = reasoned_rows(pool, shown, Path("e"))
    assert ambiguous == 0
    records = sft_records(rows, pool, "SYSTEM")
    assert [record["meta"]["gold_label"] for record in records] == ["pos", "neg", "pos", "neg", "neg", "pos"]
    right, wrong = records[0]["messages"], records[1]["messages"]
    assert [message["role"] for message in right] == ["system", "user", "assistant"]
    assert right[0]["content"] == "SYSTEM"
    assert right[1]["content"] == 'Query: "query 0"\nRetrieved video: <video>'
    think = rows[0]["model_reasoning"]
    assert right[2]["content"] == (
        f"<think> {think} </think> <answer>matched</answer> <start>0.0</start> <end>12.0</end> <REFINE>"
    )
    assert wrong[2]["content"].endswith("</think> <answer>not_matched</answer> <REFINE>")
    assert [record["videos"] for record in records[4:]] == [["v0.npy"], ["v2.npy"]]
    assert records[5]["meta"] == {
        "source": "pairs_with_reasoning", "gold_label": "pos", "video_id": "v2", "query_pos_video_id": "v2",
        "pair_id": "12_fig::gt", "episode_type": "T1", "num_negs": 0, "top1_video_id": "v0", "top1_gold_label": "neg",
    }  # fmt: skip


def test_a_wrong_video_that_shows_the_moment_too_is_left_out() -> None:
    split, rankings = two_hits_and_a_miss()
    same, other = events_of("up", "down"), events_of("left", "right")
    pool = pool_rows(FOLDER, split, rankings)
    rows, ambiguous = reasoned_rows(pool, {"v0": same, "v1": other, "v2": same, "v3": same}, Path("e"))
    assert ambiguous == 2  # v3 shown for v0's query, v0 for v2's
    assert {row["pair_id"] for row in pool} - {row["pair_id"] for row in rows} == {"10_fig::v3", "12_fig::v0"}
    assert sft_records(rows, pool, "s")[-1]["meta"]["top1_video_id"] == "v0"


def test_events_that_do_not_fit_are_named() -> None:
    split, rankings = two_hits_and_a_miss()
    pool = pool_rows(FOLDER, split, rankings)
    with pytest.raises(BuildError, match=r"e\.jsonl has no events of video 'v0'"):
        reasoned_rows(pool, {}, Path("e.jsonl"))
    with pytest.raises(BuildError, match="'10_fig'"):
        reasoned_rows(pool, {f"v{i}": events_of("up") for i in range(4)}, Path("e.jsonl"))


def test_negatives_are_the_nearest_wrong_videos() -> None:
    _, rankings = two_hits_and_a_miss()
    assert hard_negatives(rankings, 2) == {
        "10_fig": ["v3", "v2"], "11_fig": ["v2", "v3"], "12_fig": ["v0", "v1"],
    }  # fmt: skip
    assert hard_negatives(rankings, 50)["12_fig"] == ["v0", "v1", "v3"]


def test_grpo_rows_are_balanced_with_the_right_video() -> None:
    split = manifest(4, [0, 1, 2, 3])
    rankings = ranked(split, np.array([[9, 1, 2, 3], [9, 8, 1, 0], [9, 1, 8, 2], [9, 1, 2, 8]]))
    rows, stats = grpo_records(split, rankings, "SYSTEM", 2)
    assert [row["problem_id"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["label"] for row in rows] == ["matched", *["not_matched"] * 3, "matched", "matched"]
    assert rows[1]["problem"] == "SYSTEM\n\nQuery:\nquery 1"
    assert rows[1]["solution"] == "<answer>not_matched</answer><REFINE>"
    assert (rows[1]["gt_time"], rows[1]["gt_duration"], rows[1]["path"]) == ([0.0, 12.0], 20.0, "v0.npy")
    assert (rows[1]["hard_negative_ids"], rows[1]["hard_negative_ranks"]) == (["v0", "v2"], [1, 3])
    for row in rows[4:]:
        assert row["is_augmented"]
        assert (row["retrieved_video"], row["source_retrieved_video"]) == (row["gt_video"], "v0")
        assert row["path"] == f"{row['gt_video']}.npy"
        assert row["solution"] == "<answer>matched</answer><start>0.0</start><end>12.0</end><REFINE>"
    assert (stats["rows_total"], stats["rows_written"], stats["rows_matched"], stats["rows_not_matched"]) == (
        4,
        6,
        3,
        3,
    )
    assert rows == grpo_records(split, rankings, "SYSTEM", 2)[0]


def annotate(root: Path, *videos: str) -> DatasetFolder:
    folder = DatasetFolder(root)
    folder.annotations("train").parent.mkdir(parents=True)
    folder.raw_videos("train").mkdir(parents=True)
    rows = [
        {"video": video, "time": [0, 5], "desc_id": i, "duration": 9.0, "cog_desc": "", "fig_desc": "q",
         "fig_desc_score": 1.0}
        for i, video in enumerate(videos)
    ]  # fmt: skip
    folder.annotations("train").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_the_manifest_finds_files_by_stem_and_sorts_videos(tmp_path: Path) -> None:
    folder = annotate(tmp_path, "b", "a", "b", "c")
    for name in ("a.mkv", "b.MP4", ".hidden.part-c.mp4", "notes.txt"):
        (folder.raw_videos("train") / name).touch()
    found = load_manifest(folder, "train", DataConfig())
    assert {name: video.path and video.path.name for name, video in found.videos.items()} == {
        "a": "a.mkv", "b": "b.MP4", "c": None,
    }  # fmt: skip
    assert [row.video for row in found.annotations] == ["b", "a", "b", "c"]
    left = found.without({"b"})
    assert (list(left.videos), [row.video for row in left.annotations]) == (["a", "c"], ["a", "c"])
    with pytest.raises(BuildError, match="1 video"):
        found.without({"a", "b"})


def test_a_video_with_two_files_and_a_corpus_of_one_are_errors(tmp_path: Path) -> None:
    folder = annotate(tmp_path / "twice", "a", "b")
    for name in ("a.mkv", "a.mp4"):
        (folder.raw_videos("train") / name).touch()
    with pytest.raises(BuildError, match=r"'a' \(.*a\.mkv, .*a\.mp4\)"):
        load_manifest(folder, "train", DataConfig())
    with pytest.raises(BuildError, match=r"1 video\(s\) \['a'\]"):
        load_manifest(annotate(tmp_path / "one", "a", "a"), "train", DataConfig())
