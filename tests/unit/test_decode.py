"""Sampling of real, generated video files. Frame i of a generated video has the gray level `level(i)`."""

import errno
import pickle
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsr1.video.container import VideoError, open_video, timed_frames, upright
from vsr1.video.decode import frame_indices, probe_video, sample_video, shrunk_size
from vsr1.video.faults import work_on

WIDTH, HEIGHT = 64, 48
MILLISECOND = Fraction(1, 1000)


def level(index: int) -> int:
    return 20 + index * 37 % 200


def write_video(
    path: Path,
    times_ms: list[int],
    codec: str = "libx264",
    size: tuple[int, int] = (WIDTH, HEIGHT),
    rotation: int | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """One frame at each time; the left half of a rotated video is black."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=Fraction(1000 * (len(times_ms) - 1), times_ms[-1] - times_ms[0]))
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = MILLISECOND
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for index, time in enumerate(times_ms):
            image = np.full((size[1], size[0], 3), level(index), np.uint8)
            if rotation is not None:
                image[:, : size[0] // 2] = 0
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = time, MILLISECOND
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def every(step_ms: int, count: int) -> list[int]:
    return [index * step_ms for index in range(count)]


def sample(path: Path, fps: float = 1.0, max_frames: int = 64, max_pixels: int = 200_704):
    return sample_video(path, fps=fps, max_frames=max_frames, max_pixels=max_pixels)


def levels(sampled) -> list[int]:
    return [round(float(frame.mean())) for frame in sampled.frames]


FORMATS = [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.webm", "libvpx"), ("a.avi", "mpeg4")]


@pytest.mark.parametrize(("name", "codec"), FORMATS)
def test_a_long_video_is_spread_over_its_whole_length(tmp_path: Path, name: str, codec: str) -> None:
    got = sample(write_video(tmp_path / name, every(250, 161), codec), max_frames=8)
    want = [0, 22, 45, 68, 91, 114, 137, 160]
    assert got.indices == got.requested_indices == want
    assert got.total_frames == 161
    assert got.frames.dtype == np.uint8
    assert got.frames.shape == (8, HEIGHT, WIDTH, 3)
    assert got.timestamps == pytest.approx([index * 0.25 for index in want], abs=0.002)
    assert levels(got) == pytest.approx([level(index) for index in want], abs=8)
    assert not got.even_pad_applied
    assert got.duration == pytest.approx(40.25, abs=0.3)
    assert got.raw_fps == pytest.approx(4, abs=0.05)


def test_a_video_is_decoded_without_threads_of_its_own(tmp_path: Path) -> None:
    """A thread a core in each of many processes is more than a machine of many cores lets start."""
    path = write_video(tmp_path / "a.mp4", every(250, 9), size=(320, 240))

    def threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    before = threads()
    container, stream = open_video(path)
    with container:
        for _, _, frame in timed_frames(path, container, stream):
            upright(frame)
            assert threads() == before


def test_what_the_system_refuses_for_now_is_no_fault_of_the_video(tmp_path: Path) -> None:
    with pytest.raises(BlockingIOError), work_on(tmp_path / "a.mp4"):
        raise av.BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")


def test_an_odd_count_repeats_the_last_frame(tmp_path: Path) -> None:
    got = sample(write_video(tmp_path / "a.mp4", every(100, 50)))
    assert got.indices == [0, 12, 24, 36, 49]
    assert got.even_pad_applied
    assert len(got.frames) == len(got.timestamps) == 6
    assert (got.frames[-1] == got.frames[-2]).all()
    assert got.timestamps[-1] == got.timestamps[-2] == pytest.approx(4.9)


def test_a_video_under_a_second_gives_its_first_frame_twice(tmp_path: Path) -> None:
    got = sample(write_video(tmp_path / "a.mp4", every(100, 5)))
    assert got.indices == [0]
    assert got.timestamps.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_variable_frame_rate_keeps_each_frames_own_time(tmp_path: Path, name: str) -> None:
    times = [*every(100, 10), *(1000 + 1500 * index for index in range(6))]
    path = write_video(tmp_path / name, times)
    got = sample_video(path, fps=100.0, max_frames=64, max_pixels=200_704, sampling="legacy")
    assert got.indices == list(range(16))
    assert got.timestamps == pytest.approx([time / 1000 for time in times], abs=0.002)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_film_of_variable_rate_has_no_holes(tmp_path: Path, name: str) -> None:
    """45 pictures in 9 seconds, then one at 30 and one at 59: each sample is what is on the screen at its second."""
    times = [*every(200, 45), 30_000, 59_000]
    got = sample(write_video(tmp_path / name, times))
    assert len(got.indices) == int(got.duration) >= 59
    assert max(np.diff(got.timestamps)) < 2.1
    shown = [max(i for i, time in enumerate(times) if time <= 1000 * second + 3) for second in got.timestamps]
    assert got.indices == shown[: len(got.indices)]
    assert levels(got) == pytest.approx([level(index) for index in shown], abs=8)
    assert {0, 45, 46} <= set(got.indices)
    legacy = sample_video(tmp_path / name, fps=1.0, max_frames=64, max_pixels=200_704, sampling="legacy")
    assert legacy.indices == list(range(47)) and max(np.diff(legacy.timestamps)) > 20


def test_times_count_from_the_first_frame(tmp_path: Path) -> None:
    got = sample(write_video(tmp_path / "a.mkv", [5000 + time for time in every(500, 8)]))
    assert got.timestamps[0] == 0
    assert got.timestamps[-1] == pytest.approx(3.5)
    assert got.duration == pytest.approx(4.0, abs=0.4)


def test_a_large_frame_is_shrunk_and_a_small_one_left(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", every(500, 4), size=(320, 240))
    assert sample(path, max_pixels=10_000).frames.shape[1:3] == (86, 115)
    assert sample(path, max_pixels=320 * 240).frames.shape[1:3] == (240, 320)


@pytest.mark.parametrize(("rotation", "black"), [(90, np.s_[-20:, :]), (-90, np.s_[:20, :]), (180, np.s_[:, -20:])])
def test_rotation_is_applied(tmp_path: Path, rotation: int, black: tuple[slice, slice]) -> None:
    got = sample(write_video(tmp_path / "a.mp4", every(500, 4), rotation=rotation))
    assert got.frames.shape[1:3] == ((HEIGHT, WIDTH) if rotation == 180 else (WIDTH, HEIGHT))
    assert got.frames[0][black].mean() < 1 < 8 < got.frames[0].mean()


def test_a_file_cut_short_is_sampled_over_what_is_left(tmp_path: Path) -> None:
    options = {"movflags": "faststart"}
    whole = write_video(tmp_path / "a.mp4", every(250, 200), options=options)
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * 0.7)])
    got = sample(cut, max_frames=6)
    assert got.reported_frames == 200 > got.total_frames > 10
    assert got.indices[-1] == got.total_frames - 1
    assert got.timestamps[-1] < 49.75
    assert got.duration < 50
    assert len(got.frames) == len(got.timestamps) == 6


def audio_only(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16_000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16_000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def without_index(path: Path) -> None:
    whole = write_video(path.with_name("whole.mp4"), every(250, 40))
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])


def without_data(path: Path) -> None:
    whole = write_video(path.with_name("whole.mp4"), every(250, 40), options={"movflags": "faststart"}).read_bytes()
    path.write_bytes(whole[: whole.index(b"mdat") + 4])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_bytes(b""), "0 bytes"),
        (lambda path: path.write_text("this is no video\n" * 50), "cannot be opened"),
        (audio_only, "no video stream"),
        (without_index, "cannot be opened"),
        (without_data, "not one frame"),
    ],
)
def test_a_file_without_frames_is_named_with_the_reason(tmp_path: Path, make, reason: str) -> None:
    path = tmp_path / "a.mp4"
    make(path)
    with pytest.raises(VideoError, match=reason) as caught:
        sample(path)
    assert str(path) in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    with pytest.raises(VideoError, match=reason):
        probe_video(path)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm"])
def test_a_probe_gives_the_length_of_the_container(tmp_path: Path, name: str) -> None:
    path = write_video(tmp_path / name, every(250, 40), codec="libvpx" if name.endswith("webm") else "libx264")
    assert probe_video(path) == pytest.approx(10.0, abs=0.3)


@given(st.integers(1, 5000), st.integers(1, 200), st.floats(0.1, 30), st.integers(1, 128))
def test_indices_are_distinct_rising_and_within_the_video(total: int, seconds: int, fps: float, limit: int) -> None:
    got = frame_indices(total, Fraction(seconds), fps, limit)
    assert 1 <= len(got) <= min(total, limit)
    assert got[0] == 0
    assert len(got) == 1 or got[-1] == total - 1
    assert all(one < following for one, following in pairwise(got))


def test_indices_are_those_of_the_published_example() -> None:
    assert frame_indices(3072, Fraction(128), 1.0, 64)[:3] == [0, 48, 97]


@given(st.integers(2, 8000), st.integers(2, 8000), st.integers(1024, 200_704))
def test_a_size_never_exceeds_the_limit(width: int, height: int, limit: int) -> None:
    new_width, new_height = shrunk_size(width, height, limit)
    assert new_width * new_height <= max(limit, new_width, new_height)
    assert new_width <= width and new_height <= height
