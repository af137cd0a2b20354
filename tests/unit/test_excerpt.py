"""Parts of videos, and the process with limits that reads what somebody sends."""

import asyncio
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from pipelines.serve.gateway.faults import ApiError
from pipelines.serve.library import sandbox
from vsr1.settings.serving import UploadConfig
from vsr1.video.container import VideoError
from vsr1.video.excerpt import write_excerpt


def film(
    path: Path, times: list[int], *, size: tuple[int, int] = (64, 48), keys: int = 50, form: str = "mp4", **how: str
) -> Path:
    """Frames of rising shade, frame i shown from `times[i]` tenths of a second on; B-frames where the container can."""
    with av.open(str(path), "w", format=form) as container:
        options = {"g": str(keys), "crf": "1", "bf": "0" if form == "avi" else "2"} | how
        stream = container.add_stream("libx264", rate=10, options=options)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv444p"
        stream.codec_context.time_base = Fraction(1, 10)
        for number, time in enumerate(times):
            image = np.full((size[1], size[0], 3), number * 240 // len(times), np.uint8)
            frame = av.VideoFrame.from_ndarray(image)
            frame.pts, frame.time_base = time, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def played(path: Path, count: int) -> tuple[float, list[float], list[int]]:
    """Seconds, the time of each frame, and which frame of the film it is."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        length = float(stream.duration * stream.time_base)
        frames = list(container.decode(stream))
    shades = [round(frame.to_ndarray(format="rgb24").mean() * count / 240) for frame in frames]
    return length, [float(frame.pts * frame.time_base) for frame in frames], shades


@pytest.mark.parametrize("form", ["mp4", "matroska", "avi"])
@pytest.mark.parametrize(("start", "end"), [(0.0, 2.0), (0.73, 1.31), (1.5, 1.55), (2.9, 3.0)])
def test_a_part_has_its_own_frames_at_their_times(tmp_path: Path, form: str, start: float, end: float) -> None:
    source = film(tmp_path / "film", list(range(30)), form=form, keys=7)
    write_excerpt(source, tmp_path / "part", start, end)
    length, times, frames = played(tmp_path / "part", 30)
    assert length == pytest.approx(end - start, abs=1e-3)
    shown = [number for number in range(30) if (number + 1) / 10 > start + 1e-9 and number / 10 < end - 1e-9]
    assert frames == shown
    assert times == pytest.approx([max(0.0, number / 10 - start) for number in shown], abs=1e-3)


def test_the_rate_may_vary_and_sides_may_be_odd(tmp_path: Path) -> None:
    source = film(tmp_path / "film", [0, 1, 9, 10, 30], size=(65, 47))
    write_excerpt(source, tmp_path / "part", 0.5, 2.5)
    length, times, frames = played(tmp_path / "part", 5)
    assert (length, times, frames) == (pytest.approx(2.0), pytest.approx([0.0, 0.4, 0.5], abs=1e-3), [1, 2, 3])


def test_what_does_not_decode_gives_no_part(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no video")
    with pytest.raises(VideoError, match="cannot be opened"):
        write_excerpt(tmp_path / "text", tmp_path / "part", 0, 1)


def code(call: Any) -> str:
    with pytest.raises(ApiError) as failed:
        asyncio.run(call)
    return failed.value.code


def test_a_process_that_takes_too_much_ends_alone(tmp_path: Path) -> None:
    large = film(tmp_path / "film", list(range(40)), size=(1920, 1080), preset="ultrafast")
    assert asyncio.run(sandbox.check(large, UploadConfig())) == "video/mp4"
    assert code(sandbox.check(large, UploadConfig(memory_gib=0.2))) == "decode_limit"
    assert code(sandbox.cut(large, tmp_path / "part", (0.0, 4.0), UploadConfig(cpu_s=1))) == "decode_limit"


def test_limits_of_a_video(tmp_path: Path) -> None:
    source = film(tmp_path / "film", list(range(30)))
    for limits, name in (
        ({"max_pixels": 3071}, "too_many_pixels"),
        ({"max_frames": 29}, "too_many_frames"),
        ({"max_seconds": 2.9}, "too_long"),
    ):
        assert code(sandbox.check(source, UploadConfig(**limits))) == name
    exactly = UploadConfig(max_pixels=3072, max_frames=30, max_seconds=3.0)
    assert asyncio.run(sandbox.check(source, exactly)) == "video/mp4"
