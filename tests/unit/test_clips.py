"""Clip folders: what is written is what is read, under both clocks; what does not fit is named."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vsr1.video.clip_cache import ClipCache
from vsr1.video.clips import Clip, ClipError, ClipFolder, write_clip, write_meta
from vsr1.video.decode import SampledVideo

META_FIELDS = [
    "source_video_path", "source_total_frames", "source_duration_sec", "raw_fps", "target_sample_fps",
    "target_max_frames", "requested_indices_src", "sampled_indices_src", "sampled_timestamps_sec",
    "sampled_frames_before_even_pad", "even_pad_applied", "output_num_frames", "output_height", "output_width",
    "output_dtype", "extract_utc", "video_id", "output_npy_path",
]  # fmt: skip


def sampled(count: int = 5, seed: int = 0) -> SampledVideo:
    pad = count % 2
    frames = np.random.default_rng(seed).integers(0, 256, (count, 6, 8, 3), np.uint8)
    times = np.arange(count) * 4.9 / max(1, count - 1)
    return SampledVideo(
        frames=np.concatenate([frames, frames[-1:]]) if pad else frames,
        timestamps=np.concatenate([times, times[-1:]]) if pad else times,
        indices=[12 * index for index in range(count)],
        total_frames=50,
        duration=5.0,
        raw_fps=10.0,
        requested_indices=[12 * index for index in range(count)],
        even_pad_applied=bool(pad),
        reported_frames=50,
    )


def build(folder: Path, *ids: str, **changes: Any) -> list[dict[str, Any]]:
    rows = []
    for number, video_id in enumerate(ids):
        row = write_clip(
            folder, video_id, sampled(4 + number), source=Path(f"raw/{video_id}.mp4"), target_fps=1.0, max_frames=64
        )
        rows.append({**row, **changes})
    write_meta(folder, rows)
    return rows


def test_written_clips_are_read_back_with_true_times(tmp_path: Path) -> None:
    rows = build(tmp_path, "b", "a.with.dots")
    folder = ClipFolder(tmp_path)
    assert folder.video_ids() == ["a.with.dots", "b"]
    for number, video_id in enumerate(("b", "a.with.dots")):
        want = sampled(4 + number)
        clip = folder.read(video_id)
        assert clip.video_id == video_id
        assert (clip.frames == want.frames).all()
        assert clip.timestamps.tolist() == want.timestamps.tolist()
        assert clip.content_hash == Clip.make(video_id, want.frames, want.timestamps).content_hash
        assert clip.nbytes == want.frames.nbytes + want.timestamps.nbytes
    assert list(rows[0]) == META_FIELDS
    assert (rows[0]["output_num_frames"], rows[0]["output_height"], rows[0]["output_width"]) == (4, 6, 8)
    assert rows[1]["even_pad_applied"] and rows[1]["sampled_frames_before_even_pad"] == 5
    assert len(rows[1]["sampled_timestamps_sec"]) == 5


def test_meta_is_sorted_and_nothing_temporary_stays(tmp_path: Path) -> None:
    build(tmp_path, "b", "a")
    lines = (tmp_path / "meta.jsonl").read_text().splitlines()
    assert [json.loads(line)["video_id"] for line in lines] == ["a", "b"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npy", "b.npy", "meta.jsonl"]


def test_a_failed_write_leaves_the_old_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tmp_path, "a")
    before = ClipFolder(tmp_path).read("a").content_hash

    def full_disk(part: Path, array: np.ndarray, **_: Any) -> None:
        part.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "save", full_disk)
    with pytest.raises(OSError, match="no space"):
        build(tmp_path, "a")
    assert ClipFolder(tmp_path).read("a").content_hash == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npy", "meta.jsonl"]


def test_the_legacy_clock_counts_frames(tmp_path: Path) -> None:
    build(tmp_path, "a", "b", target_sample_fps=2.0)
    assert ClipFolder(tmp_path, "legacy_index").read("b").timestamps.tolist() == [0, 0.5, 1, 1.5, 2, 2.5]


def test_rows_are_found_by_stem_whatever_their_folder(tmp_path: Path) -> None:
    build(tmp_path, "a", output_npy_path="/elsewhere/video_npy_with_meta/a.npy", video_id="other")
    assert ClipFolder(tmp_path).read("a").video_id == "a"


def test_the_last_row_of_an_appended_meta_counts(tmp_path: Path) -> None:
    (row,) = build(tmp_path, "a")
    stale = {**row, "sampled_timestamps_sec": [0.0, 1.0, 2.0, 3.0]}
    skip = {"source_video_path": "raw/a.mp4", "output_npy_path": "a.npy", "status": "skip_exists"}
    (tmp_path / "meta.jsonl").write_text("".join(json.dumps(one) + "\n" for one in (stale, row, skip)))
    assert ClipFolder(tmp_path).read("a").timestamps[-1] == pytest.approx(4.9)


def test_a_missing_row_file_or_meta_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClipError, match=r"no meta\.jsonl"):
        ClipFolder(tmp_path)
    build(tmp_path, "a")
    folder = ClipFolder(tmp_path)
    with pytest.raises(ClipError, match="'nosuch' has no row"):
        folder.read("nosuch")
    (tmp_path / "a.npy").unlink()
    with pytest.raises(ClipError, match=r"'a' has a row but no file .*a\.npy"):
        folder.read("a")


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((4, 6, 8, 3), np.float32), "float32"),
        (np.zeros((4, 6, 8), np.uint8), "want uint8"),
        (np.zeros((3, 6, 8, 3), np.uint8), "even number"),
        (np.zeros((2, 6, 8, 3), np.uint8), "timestamps"),
        (np.zeros((), np.uint8), "want uint8"),
    ],
)
def test_an_array_that_is_no_clip_is_refused(tmp_path: Path, array: np.ndarray, reason: str) -> None:
    build(tmp_path, "a")
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ClipError, match=reason) as caught:
        ClipFolder(tmp_path).read("a")
    assert "a.npy" in str(caught.value)


@pytest.mark.parametrize("keep", [0, 4, 200])
def test_a_file_cut_short_is_refused(tmp_path: Path, keep: int) -> None:
    build(tmp_path, "a")
    path = tmp_path / "a.npy"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ClipError, match="not a whole array"):
        ClipFolder(tmp_path).read("a")


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    build(tmp_path, "a")
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ClipError, match="not a whole array"):
        ClipFolder(tmp_path).read("a")


def test_a_broken_row_is_named_by_line_and_a_thin_one_by_field(tmp_path: Path) -> None:
    (row,) = build(tmp_path, "a")
    del row["sampled_timestamps_sec"]
    write_meta(tmp_path, [row])
    with pytest.raises(ClipError, match="sampled_timestamps_sec"):
        ClipFolder(tmp_path).read("a")
    (tmp_path / "meta.jsonl").write_text(json.dumps(row) + "\n{broken\n")
    with pytest.raises(ClipError, match=r"meta\.jsonl line 2"):
        ClipFolder(tmp_path)


@pytest.mark.parametrize("video_id", ["", ".", "..", "../a", "a/../b", "/a", "a//b", "a/"])
def test_an_id_cannot_leave_the_folder(tmp_path: Path, video_id: str) -> None:
    with pytest.raises(ClipError, match="cannot name a file"):
        write_clip(tmp_path / "clips", video_id, sampled(), source=Path("a"), target_fps=1.0, max_frames=64)


def test_the_hash_follows_pixels_times_and_shape_but_not_the_id() -> None:
    frames, times = np.zeros((2, 4, 6, 3), np.uint8), np.array([0.0, 1.0])
    first = Clip.make("a", frames, times).content_hash
    assert Clip.make("b", frames.copy(), times).content_hash == first
    assert Clip.make("a", frames + np.uint8(1), times).content_hash != first
    assert Clip.make("a", frames, times + 1).content_hash != first
    assert Clip.make("a", frames.reshape(2, 6, 4, 3), times).content_hash != first


@pytest.mark.parametrize(("times", "seconds"), [([0.0, 2.0, 4.0, 6.0], 8.0), ([0.0, 3.0], 6.0), ([0.0, 0.0], 0.0)])
def test_a_clip_lasts_a_mean_interval_past_its_last_frame(times: list[float], seconds: float) -> None:
    frames = np.zeros((len(times), 4, 4, 3), np.uint8)
    assert Clip.make("a", frames, np.array(times)).seconds == seconds


@pytest.mark.parametrize("times", [[0.0, float("nan")], [1.0, 0.0]])
def test_times_must_rise(times: list[float]) -> None:
    with pytest.raises(ClipError, match="finite and rising"):
        Clip.make("a", np.zeros((2, 4, 4, 3), np.uint8), np.array(times))


def test_a_folder_travels_and_its_clips_fit_the_cache(tmp_path: Path) -> None:
    build(tmp_path, "a")
    clip = pickle.loads(pickle.dumps(ClipFolder(tmp_path))).read("a")
    cache: ClipCache[Clip] = ClipCache(clip.nbytes)
    cache.make_room("a", clip.frames.nbytes + clip.timestamps.nbytes)
    cache.put("a", clip, clip.nbytes)
    assert cache.held_bytes == clip.nbytes


def film(height: int, width: int, count: int = 6) -> SampledVideo:
    """A bright square that moves over a smooth background."""
    rows, columns = np.mgrid[:height, :width]
    ground = np.stack([rows * 2, columns * 2, rows + columns], axis=-1) % 200
    frames = np.repeat(ground[None], count, axis=0).astype(np.uint8)
    for index in range(count):
        frames[index, index : index + height // 3, index : index + width // 3] = (230, 60, 20)
    times = np.arange(count, dtype=np.float64)
    indices = list(range(count))
    return SampledVideo(frames, times, indices, count, float(count), 1.0, indices, False, count)


def compact(folder: Path, sampled: SampledVideo, storage: Any = "compact") -> dict[str, Any]:
    row = write_clip(folder, "a", sampled, source=Path("a.mp4"), target_fps=1.0, max_frames=64, storage=storage)
    write_meta(folder, [row])
    return row


@pytest.mark.parametrize(("height", "width"), [(65, 47), (96, 128), (1, 1), (3, 200)])
def test_a_compact_clip_keeps_size_order_and_times_and_nearly_the_pixels(
    tmp_path: Path, height: int, width: int
) -> None:
    want = film(height, width)
    row = compact(tmp_path, want)
    assert [key for key in row if "compact" not in key] == META_FIELDS[:-1]
    assert row["output_compact_path"] == str(tmp_path / "a.mkv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mkv", "meta.jsonl"]
    clip = ClipFolder(tmp_path).read("a")
    assert clip.frames.shape == want.frames.shape and clip.timestamps.tolist() == want.timestamps.tolist()
    difference = clip.frames.astype(int) - want.frames
    assert 10 * np.log10(255**2 / max(1e-9, (difference**2).mean())) > 35
    assert clip.content_hash == Clip.make("a", clip.frames, clip.timestamps).content_hash
    assert ClipFolder(tmp_path).read("a").content_hash == clip.content_hash


def test_the_same_frames_give_the_same_compact_file(tmp_path: Path) -> None:
    rows = [compact(tmp_path / name, film(65, 47, 24)) for name in ("one", "two", "three")]
    assert len({row["output_compact_sha256"] for row in rows}) == 1
    assert len({(tmp_path / name / "a.mkv").read_bytes() for name in ("one", "two", "three")}) == 1


def test_a_clip_has_one_file_whatever_its_storage_was_before(tmp_path: Path) -> None:
    for storage, suffix in (("npy", "npy"), ("compact", "mkv"), ("npy", "npy")):
        compact(tmp_path, film(32, 32), storage)
        assert sorted(path.name for path in tmp_path.iterdir()) == [f"a.{suffix}", "meta.jsonl"]
        assert len(ClipFolder(tmp_path).read("a").frames) == 6


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "flip", "other"])
def test_a_damaged_compact_clip_is_refused(tmp_path: Path, damage: str) -> None:
    compact(tmp_path, film(96, 128, 24))
    path = tmp_path / "a.mkv"
    whole = path.read_bytes()
    if damage == "other":
        compact(tmp_path / "other", film(96, 128, 26))
        path.write_bytes((tmp_path / "other" / "a.mkv").read_bytes())
    else:
        half = len(whole) // 2
        flipped = whole[:half] + bytes(255 - byte for byte in whole[half : half + 64]) + whole[half + 64 :]
        path.write_bytes({"cut": whole[:half], "empty": b"", "text": b"no clip\n" * 99, "flip": flipped}[damage])
    with pytest.raises(ClipError, match=r"'a': .*a\.mkv is not a whole array .* delete and rebuild it"):
        ClipFolder(tmp_path).read("a")
