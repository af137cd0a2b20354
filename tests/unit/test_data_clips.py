"""One video's task: what it says of a full disk and of a source that is only touched; and how batches are cut."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from pipelines.data import clips as data_clips
from pipelines.data.clips import read_journal
from pipelines.data.embed import _cut
from vsr1.formats.dataset import DatasetFolder
from vsr1.settings.data import DataConfig
from vsr1.toy.corpus import write_toy_corpus


@pytest.fixture
def item(tmp_path: Path) -> dict[str, str]:
    write_toy_corpus(tmp_path / "toy", 2, 2, 0)
    source = DatasetFolder(tmp_path / "toy").raw_videos("test") / "test_0000.mp4"
    return {"video_id": "test_0000", "path": str(source), "earlier": "null"}


def make(item: dict[str, str], data: DataConfig | None = None) -> dict[str, Any]:
    root = Path(item["path"]).parents[2]
    return data_clips._make_clip(item, root=root, clips=root / "test" / "clips", data=data or DataConfig())


def test_a_full_disk_is_no_failure_of_the_video(item: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(data_clips, "make_clip", full)
    done = make(item)
    assert "No space left" in done["stop"]
    assert (done["row"], done["error"]) == ("", "")


def test_a_touched_source_is_hashed_and_its_clip_kept(item: dict[str, str]) -> None:
    first = make(item)
    assert first["decoded"]
    os.utime(item["path"])
    second = make(item | {"earlier": first["row"]})
    assert not second["decoded"]
    before, after = json.loads(first["row"]), json.loads(second["row"])
    assert before["source"][1] != after["source"][1]
    assert (before["source"][2], before["meta"], before["clip"]) == (after["source"][2], after["meta"], after["clip"])
    Path(item["path"]).write_bytes(b"no video")
    assert "cannot be opened" in make(item | {"earlier": second["row"]})["error"]


def test_a_line_that_was_cut_off_is_passed_over(tmp_path: Path) -> None:
    journal = tmp_path / "rows.jsonl"
    journal.write_text('{"video_id": "a", "n": 1}\n{"video_id": "a", "n": 2}\n{"video_id": "b"')
    assert read_journal(journal) == {"a": {"video_id": "a", "n": 2}}
    assert read_journal(tmp_path / "none.jsonl") == {}


def test_batches_are_bounded_by_count_and_by_bytes() -> None:
    sizes = {"a": 4, "b": 4, "c": 9, "d": 20, "e": 1, "f": 1, "g": 1}
    assert list(_cut(list(sizes), sizes, 2, 10)) == [["a", "b"], ["c"], ["d"], ["e", "f"], ["g"]]
    assert list(_cut([], {}, 2, 10)) == []
