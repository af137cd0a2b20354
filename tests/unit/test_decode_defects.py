"""Generated files, one for each defect: the right frames at their true times, or an error that says why.

Frame i has the gray level `level(i)`, so that a frame that is read can be told from its neighbours.
"""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Disposition

from vsr1.video import decode
from vsr1.video.container import VideoError
from vsr1.video.decode import SampledVideo, sample_video

RATE, COUNT = 4, 40  # frames a second, frames
WIDTH, HEIGHT = 64, 48


def level(index: int) -> int:
    return 20 + index * 37 % 200


def encode(
    path: Path,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    size: tuple[int, int] = (WIDTH, HEIGHT),
    ticks: Any = range(COUNT),
    rate: int = RATE,
    container: dict[str, str] | None = None,
    **options: str,
) -> Path:
    """One frame at each tick; full range is declared where the pixel format has it."""
    with av.open(str(path), "w", options=container or {}) as output:
        stream = output.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height = size
        stream.pix_fmt = pixels
        if pixels.startswith("gray"):
            stream.codec_context.color_range = 2
        for index, tick in enumerate(ticks):
            image = np.full((size[1], size[0], 3), level(index), np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pixels)
            frame.pts, frame.time_base = tick, Fraction(1, rate)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path


def remux(source: Path, target: Path, change: Callable[[int, av.Packet], Any] | None = None, **options: str) -> Path:
    """Copy packets; `change` gets number and packet and gives the packet to write, or None to drop it."""
    with av.open(str(source)) as old, av.open(str(target), "w", options=options) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for number, packet in enumerate(old.demux(old.streams.video[0])):
            kept = packet if change is None or packet.dts is None else change(number, packet)
            if kept is not None and kept.dts is not None:
                kept.stream = stream
                new.mux(kept)
    return target


def sample(path: Path, fps: float = 1.0, max_frames: int = 6) -> SampledVideo:
    return sample_video(path, fps=fps, max_frames=max_frames, max_pixels=200_704)


def levels(got: SampledVideo) -> list[int]:
    return [round(float(frame.mean())) for frame in got.frames]


def check_times(got: SampledVideo, dropped: int = 0) -> None:
    """Every frame shows what belongs to its time, `dropped` being frames missing before the first."""
    at = [round(float(time) * RATE) + dropped for time in got.timestamps]
    assert levels(got) == pytest.approx([level(index) for index in at], abs=8)


WHOLE: dict[str, Callable[[Path], Path]] = {
    "b_frames": lambda p: encode(p / "a.mp4", bf="3", g="12"),
    "b_frames_negative_offsets": lambda p: encode(p / "a.mp4", bf="3", container={"movflags": "negative_cts_offsets"}),
    "b_frames_mpeg4_avi": lambda p: encode(p / "a.avi", "mpeg4", bf="2"),
    "hidden_frames": lambda p: encode(p / "a.webm", "libvpx", **{"auto-alt-ref": "1", "lag-in-frames": "16"}),
    "no_index_no_duration": lambda p: encode(p / "a.mkv", container={"live": "1"}),
    "flash": lambda p: encode(p / "a.flv"),
    "10_bit": lambda p: encode(p / "a.mp4", "libx265", "yuv420p10le", **{"x265-params": "log-level=none"}),
    "gray": lambda p: encode(p / "a.mp4", pixels="gray"),
    "gray_10_bit": lambda p: encode(p / "a.mkv", "ffv1", "gray10le"),
    "jpeg_full_range": lambda p: encode(p / "a.avi", "mjpeg", "yuvj422p"),
    "transparent": lambda p: encode(p / "a.mov", "png", "rgba"),
    "interlaced": lambda p: encode(p / "a.mp4", flags="+ildct+ilme", **{"x264-params": "tff=1"}),
    "gif": lambda p: encode(p / "a.gif", "gif", "rgb8"),
    "odd_size": lambda p: encode(p / "a.mkv", "libvpx-vp9", size=(65, 47)),
    "odd_size_444": lambda p: encode(p / "a.mp4", pixels="yuv444p", size=(65, 47)),
}


@pytest.mark.parametrize("defect", WHOLE)
def test_every_frame_is_found_at_its_time(tmp_path: Path, defect: str) -> None:
    got = sample(WHOLE[defect](tmp_path))
    assert got.indices == [0, 7, 15, 23, 31, 39]
    assert got.timestamps == pytest.approx([index / RATE for index in got.indices], abs=0.011)
    assert levels(got) == pytest.approx([level(index) for index in got.indices], abs=8)
    assert got.frames.shape[1:] == ((47, 65, 3) if "odd" in defect else (HEIGHT, WIDTH, 3))
    assert got.duration == pytest.approx(COUNT / RATE, abs=0.3)


def test_a_late_start_is_time_zero(tmp_path: Path) -> None:
    def later(number: int, packet: av.Packet) -> av.Packet:
        packet.pts, packet.dts = packet.pts + 5 / packet.time_base, packet.dts + 5 / packet.time_base
        return packet

    got = sample(remux(encode(tmp_path / "a.mp4"), tmp_path / "late.mp4", later))
    assert got.timestamps[0] == 0 and got.timestamps[-1] == 9.75
    check_times(got)


def earlier(number: int, packet: av.Packet) -> av.Packet:
    packet.pts, packet.dts = packet.pts - 2 / packet.time_base, packet.dts - 2 / packet.time_base
    return packet


def test_frames_before_an_edit_list_are_not_shown(tmp_path: Path) -> None:
    path = remux(encode(tmp_path / "a.mp4"), tmp_path / "cut.mp4", earlier, avoid_negative_ts="disabled")
    got = sample(path)
    assert got.reported_frames == 40 and got.total_frames == 32
    assert (got.timestamps[0], got.timestamps[-1]) == (0, 7.75)
    check_times(got, dropped=8)


def test_frames_without_a_time_among_others_are_no_guess(tmp_path: Path) -> None:
    path = remux(encode(tmp_path / "a.mp4"), tmp_path / "a.mkv", earlier, avoid_negative_ts="disabled")
    with pytest.raises(VideoError, match=r"carry a time and some, around 8, none; encode it again"):
        sample(path)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_damaged_packet_costs_its_frame_and_no_more(tmp_path: Path, suffix: str) -> None:
    def damage(number: int, packet: av.Packet) -> av.Packet:
        if number != 20:
            return packet
        broken = av.Packet(b"\xff" * packet.size)
        broken.pts, broken.dts, broken.time_base = packet.pts, packet.dts, packet.time_base
        return broken

    path = remux(encode(tmp_path / "a.mp4", g="4", bf="0"), tmp_path / f"damaged.{suffix}", damage)
    got = sample(path)
    assert got.total_frames in (COUNT - 1, COUNT)  # a decoder may show the frame before in its place
    assert got.timestamps[-1] == 9.75
    check_times(got)


def test_a_stream_that_begins_between_key_frames_is_read_from_the_next(tmp_path: Path) -> None:
    source = encode(tmp_path / "a.mp4", g="12", bf="0", sc_threshold="0")
    got = sample(remux(source, tmp_path / "a.mkv", lambda number, packet: packet if number else None))
    assert got.total_frames == COUNT - 12
    check_times(got, dropped=12)


def test_a_gap_in_time_stays_one(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mkv", ticks=[*range(20), *range(2000, 2020)])
    got = sample_video(path, fps=1.0, max_frames=6, max_pixels=200_704, sampling="legacy")
    assert got.timestamps.tolist() == [0, 1.75, 3.75, 500.75, 502.75, 504.75]
    by_time = sample(path)
    assert by_time.indices == [0, 19, 19, 19, 19, 39]
    assert by_time.timestamps.tolist() == pytest.approx([0, 4.75, 201.9, 302.85, 403.8, 504.75])


def test_a_change_of_size_in_mid_stream_keeps_the_first_size(tmp_path: Path) -> None:
    parts = [encode(tmp_path / "1.ts", ticks=range(20)), encode(tmp_path / "2.ts", size=(96, 96), ticks=range(20, 40))]
    joined = tmp_path / "a.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    got = sample_video(joined, fps=1.0, max_frames=6, max_pixels=200_704, sampling="legacy")
    assert got.frames.shape == (6, HEIGHT, WIDTH, 3)
    assert levels(got) == pytest.approx([level(index) for index in (0, 7, 15, 3, 11, 19)], abs=8)


def test_times_that_start_again_in_mid_stream_are_an_error(tmp_path: Path) -> None:
    one = encode(tmp_path / "1.ts", ticks=range(20)).read_bytes()
    (tmp_path / "a.ts").write_bytes(one + one)
    with pytest.raises(VideoError, match=r"lies .* s before an earlier one; encode it again"):
        sample(tmp_path / "a.ts")


@pytest.mark.parametrize(("suffix", "count"), [("mp4", 1), ("mkv", 1), ("mp4", 2), ("gif", 2)])
def test_a_video_of_one_or_two_frames_gives_its_first_twice(tmp_path: Path, suffix: str, count: int) -> None:
    codec, pixels = ("gif", "rgb8") if suffix == "gif" else ("libx264", "yuv420p")
    got = sample(encode(tmp_path / f"a.{suffix}", codec, pixels, ticks=range(count)))
    assert (got.indices, got.timestamps.tolist(), got.total_frames) == ([0], [0.0, 0.0], count)
    assert (got.frames[0] == got.frames[1]).all() and got.even_pad_applied


@pytest.mark.parametrize("suffix", ["mp3", "mkv"])
def test_sound_with_a_cover_picture_is_no_video(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("libmp3lame", rate=16_000)
        sound.layout = "mono"
        if suffix == "mp3":
            cover = container.add_stream("png", rate=1)
            cover.width = cover.height = 16
            cover.pix_fmt = "rgb24"
            cover.disposition = Disposition.attached_pic
            container.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")))
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1152), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16_000, 0
        container.mux(sound.encode(frame))
        container.mux(sound.encode())
    with pytest.raises(VideoError, match="has no video stream"):
        sample(path)


@pytest.mark.parametrize(("make", "passes"), [("no_index_no_duration", 1), ("b_frames", 1), ("hidden_frames", 1)])
def test_a_sound_file_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: str, passes: int) -> None:
    decoded, decode_once = [], decode._decode
    monkeypatch.setattr(decode, "_decode", lambda *a: decoded.append(a) or decode_once(*a))
    sample(WHOLE[make](tmp_path))
    assert len(decoded) == passes
