"""The folder of added videos: one state a video, whatever is interrupted; ids; and the corpus that comes of it."""

import json
from pathlib import Path

import numpy as np
import pytest

from vsr1.formats.dataset import DatasetFolder
from vsr1.retrieval.added import SOURCE, AddedFolder, AddedVideo, Fault, LibraryClips, video_id_problem, with_added
from vsr1.retrieval.corpus import open_corpus
from vsr1.retrieval.request import RetrievalError
from vsr1.video.clips import ClipError, ClipFolder, write_clip, write_meta
from vsr1.video.decode import SampledVideo

VECTOR = np.eye(4, dtype=np.float32)


def clip(folder: Path, video_id: str, shade: int) -> None:
    frames = np.full((2, 8, 8, 3), shade, np.uint8)
    sampled = SampledVideo(frames, np.array([0.0, 1.0]), [0, 1], 2, 2.0, 1.0, [0, 1], False, 2)
    row = write_clip(folder, video_id, sampled, source=folder / SOURCE, target_fps=1.0, max_frames=2)
    write_meta(folder, [row])


def bring(added: AddedFolder, video_id: str, shade: int = 0) -> AddedVideo:
    """A video up to its clip."""
    received = added.receiving / video_id
    received.mkdir(parents=True)
    (received / SOURCE).write_bytes(b"film")
    video = AddedVideo(video_id=video_id, sha256="0" * 64, media_type="video/mp4", embedder="one")
    added.accept(received, video)
    clip(added.incoming(video_id), video_id, shade)
    return video


@pytest.mark.parametrize(
    "video_id",
    [
        "a", "käse 日本 #1?", "x" * 200, "a.mp4", "a..b",
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0915\u094d\u200d\u0937",
        "\U0001f468\u200d\U0001f469", "9.41.00\u202fAM", "a\u00a0b", "a\u3000b", "\u05d0\u200f", "a\u00adb",
    ],
)  # fmt: skip
def test_ids_in_any_script(video_id: str) -> None:
    assert video_id_problem(video_id) is None


@pytest.mark.parametrize(
    "video_id",
    [
        "",
        ".",
        "..",
        ".x",
        " x",
        "x ",
        "a/b",
        "a\\b",
        "a\0",
        "a\n",
        "\ud800",
        "ü" * 101,
        "a\u202eb",
        "a\u2066b",
        "a\u2028b",
        "\ufeffa",
    ],
)
def test_ids_that_cannot_name_a_file(video_id: str, tmp_path: Path) -> None:
    assert video_id_problem(video_id)
    assert not AddedFolder(tmp_path).has(video_id)
    with pytest.raises(ClipError, match="video id"):
        AddedFolder(tmp_path).video(video_id)


def test_a_video_goes_from_state_to_state(tmp_path: Path) -> None:
    added = AddedFolder(tmp_path)
    video = bring(added, "a")
    assert added.read_all("incoming") == {"a": video} and not added.has("a")
    added.finish(video, VECTOR[0])
    assert added.read_all("videos") == {"a": video} and added.read_all("incoming") == {}
    added.delete("a")
    assert not added.has("a") and added.has("a", "deleted")
    added.purge("a")
    assert not added.has("a", "deleted")


def test_of_a_video_that_failed_the_reason_stays(tmp_path: Path) -> None:
    added, fault = AddedFolder(tmp_path), Fault(code="decode_limit", message="too much")
    video = bring(added, "a")
    added.finish(video, VECTOR[0])
    added.fail(video, fault)
    assert added.read_all("incoming")["a"].fault == fault and not added.has("a")
    assert [path.name for path in added.incoming("a").iterdir()] == ["video.json"]
    assert bring(added, "a").fault is None
    assert added.read_all("incoming")["a"].fault is None


def test_a_start_frees_what_a_kill_left(tmp_path: Path) -> None:
    added = AddedFolder(tmp_path)
    added.finish(bring(added, "kept"), VECTOR[0])
    added.finish(bring(added, "gone"), VECTOR[0])
    added.delete("gone")
    (added.receiving / "half").mkdir()
    (tmp_path / "videos" / ".x.gone").mkdir()
    added.purge_all()
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("*/*")) == ["videos/kept"]


def test_a_record_that_is_damaged_is_named(tmp_path: Path) -> None:
    added = AddedFolder(tmp_path)
    bring(added, "a")
    (added.incoming("a") / "video.json").write_text("{}")
    with pytest.raises(ClipError, match=r"incoming/a/video\.json cannot be used"):
        added.read_all("incoming")


def test_clips_of_both_places_are_read(tmp_path: Path) -> None:
    clip(tmp_path / "built", "a", 1)
    added = AddedFolder(tmp_path / "added")
    clips = LibraryClips(ClipFolder(tmp_path / "built"), added)
    added.finish(bring(added, "b", 2), VECTOR[0])
    assert [clips.known(name).read(name).frames[0, 0, 0, 0] for name in "ab"] == [1, 2]
    added.remove("a")
    added.delete("b")
    for name in ("a", "b", "nowhere", ".."):
        with pytest.raises(ClipError, match="no video"):
            clips.known(name)
    assert [clips.read(name).frames[0, 0, 0, 0] for name in "ab"] == [1, 2]  # for searches that found them before
    added.finish(bring(added, "a", 3), VECTOR[0])
    assert clips.known("a").read("a").frames[0, 0, 0, 0] == 3


def dataset(root: Path) -> DatasetFolder:
    folder = DatasetFolder(root)
    place = folder.video_embeddings("test")
    place.parent.mkdir(parents=True)
    np.save(place, VECTOR[:3])
    folder.docid2row("test").write_text(json.dumps({"a": 0, "b": 1, "c": 2}), encoding="utf-8")
    return folder


def test_the_corpus_with_what_was_added_and_without_what_was_removed(tmp_path: Path) -> None:
    added = AddedFolder(tmp_path / "added")
    built = open_corpus(dataset(tmp_path), "test")
    assert with_added(built, added, "one") is built
    added.finish(bring(added, "d"), VECTOR[3])
    added.remove("a")
    added.remove("gone before")
    corpus = with_added(built, added, "one")
    assert corpus.catalogue.video_ids == ["b", "c", "d"] and corpus.catalogue.version != built.catalogue.version
    np.testing.assert_array_equal(corpus.vectors, VECTOR[1:])
    added.finish(bring(added, "a"), VECTOR[3])
    again = with_added(built, added, "one")
    assert again.catalogue.video_ids == ["a", "b", "c", "d"]
    np.testing.assert_array_equal(again.vectors[[0, 3]], VECTOR[[3, 3]])
    with pytest.raises(RetrievalError, match="was added with embedder one, but queries are embedded with two"):
        with_added(built, added, "two")


def test_a_video_that_is_added_in_place_of_a_built_one_counts_and_its_way_back_is_the_built_corpus(
    tmp_path: Path,
) -> None:
    added, built = AddedFolder(tmp_path / "added"), open_corpus(dataset(tmp_path), "test")
    added.finish(bring(added, "b"), VECTOR[3])
    corpus = with_added(built, added, "one")
    assert corpus.catalogue.video_ids == ["a", "b", "c"]
    np.testing.assert_array_equal(corpus.vectors, VECTOR[[0, 3, 2]])
    added.delete("b")
    assert with_added(built, added, "one") is built


@pytest.mark.parametrize(
    ("vector", "says"),
    [
        (np.ones(3), r"the vector of 'd' has shape \(3,\), the index has 4 numbers"),
        (np.zeros(4), r"vectors of \['d'\] are zero or not finite"),
        (np.full(4, np.nan), "zero or not finite"),
    ],
)
def test_an_added_vector_that_does_not_fit(tmp_path: Path, vector: np.ndarray, says: str) -> None:
    added, built = AddedFolder(tmp_path / "added"), open_corpus(dataset(tmp_path), "test")
    added.finish(bring(added, "d"), vector)
    with pytest.raises(RetrievalError, match=says):
        with_added(built, added, "one")


def test_a_corpus_of_which_too_much_was_removed(tmp_path: Path) -> None:
    added, built = AddedFolder(tmp_path / "added"), open_corpus(dataset(tmp_path), "test")
    added.remove("a")
    added.remove("b")
    with pytest.raises(RetrievalError, match=r"the corpus with .*added holds 1 videos"):
        with_added(built, added, "one")
