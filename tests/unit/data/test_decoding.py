"""How far a decode is, is said for few videos as for many, and for a long one while it runs."""

import json
import time
from pathlib import Path

import pytest

from pipelines.data import decoding
from pipelines.data.decoding import Decoding, reporting
from vsr1.formats.dataset import DatasetFolder

from .builds import build


def test_every_tenth_of_the_videos_is_said(fresh: DatasetFolder) -> None:
    lines: list[str] = []
    build(fresh.root, splits=["test"], progress=lines.append)
    assert [line for line in lines if "of 4 videos decoded" in line][-1].startswith("test: 4 of 4 videos decoded")
    assert sum("videos decoded" in line for line in lines) == 4
    assert not (fresh.build_state / "test.decoding").exists()


def test_a_long_video_says_its_frames_and_the_time_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "SAY_EVERY_S", 0.05)
    monkeypatch.setattr(decoding, "WRITE_EVERY_S", 0.0)
    lines: list[str] = []
    state = tmp_path / "state"
    with (
        Decoding("test", 2, state, lines.append) as watched,
        reporting(state, "lecture") as tell,
    ):
        assert tell is not None
        tell(30_000, 120_000)
        deadline = time.monotonic() + 60
        while not any("lecture" in line for line in lines) and time.monotonic() < deadline:
            time.sleep(0.02)
        (state / "0.json").write_text(json.dumps(["torn", 1])[:-3])
        assert "lecture: 30000 of about 120000 frames; about" in watched.line()
    said = next(line for line in lines if "lecture" in line)
    assert said.startswith("test: 0 of 2 videos decoded; lecture: 30000 of about 120000 frames; about ")
    assert said.endswith(" left")
    assert not state.exists()
