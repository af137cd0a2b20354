"""Journals come back to the bit, end at the last whole frame wherever they were cut, and say when the disk is full."""

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsr1.episode.environment import FinishedTurn
from vsr1.runs.journal import Journal, JournalError, read_journal, write_journal
from vsr1.video.clips import ClipReference

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
TURN = FinishedTurn(
    prompt_token_ids=[151655] * 50 + [1],
    token_ids=[7, 8],
    logprobs=[float(np.float32(-0.1)), -1e-30],
    text="größer \N{CAT}",
    finish_reason="refined",
    latents=np.arange(6, dtype=np.float32).reshape(2, 3) / 7,
    soft_tokens=np.float32([[np.pi]]),
    seed=2**56 - 1,
    weight_version=3,
    clips=[ClipReference("v", "abc")],
    index_version="i2",
)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return type(a) is type(b) and a == b


@given(st.lists(st.dictionaries(st.text(max_size=5), VALUES, max_size=4), max_size=5))
def test_frames_come_back(tmp_path_factory: pytest.TempPathFactory, frames: list[dict[str, Any]]) -> None:
    path = tmp_path_factory.mktemp("journal") / "1.journal"
    write_journal(path, frames)
    assert list(read_journal(path)) == frames


def test_a_turn_comes_back_to_the_bit(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "new" / "1.journal")
    journal.append({"kind": "turn", "turn": TURN})
    journal.sync()
    journal.close()
    [frame] = read_journal(journal.path)
    for name, value in vars(TURN).items():
        assert same(getattr(frame["turn"], name), value), name
    assert os.stat(journal.path).st_size < 500  # a clip's placeholders cost nothing


def test_a_journal_cut_at_any_byte_holds_its_whole_frames(tmp_path: Path) -> None:
    path, ends, frames = tmp_path / "1.journal", [0], [{"n": 0}, {"turn": TURN.text}, {"n": [1, 2.5]}]
    journal = Journal(path)
    for frame in frames:
        journal.append(frame)
        ends.append(path.stat().st_size)
    journal.close()
    data = path.read_bytes()
    for size in range(len(data) + 1):
        path.write_bytes(data[:size])
        whole = sum(end <= size for end in ends) - 1
        assert list(read_journal(path)) == frames[:whole], size


def test_a_journal_with_a_wrong_byte_ends_before_the_frame_that_has_it(tmp_path: Path) -> None:
    path = tmp_path / "1.journal"
    write_journal(path, [{"n": 1}, {"n": 2}, {"n": 3}])
    data = bytearray(path.read_bytes())
    second = len(data) // 3 + 10
    data[second] ^= 1
    path.write_bytes(data)
    assert list(read_journal(path)) == [{"n": 1}]


@pytest.mark.parametrize("part", [None, 5])
def test_a_full_disk_is_one_line_and_the_journal_stays_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int | None
) -> None:
    """The system refuses a frame (`part` None) or takes its first bytes only."""
    journal, write = Journal(tmp_path / "1.journal"), os.write

    def full(file: int, data: bytes) -> int:
        if part is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data[:part])

    journal.append({"n": 1})
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(JournalError, match=r"1\.journal cannot be written: No space left on device$"):
            journal.append({"n": 2})
    journal.append({"n": 3})
    assert list(read_journal(journal.path)) == [{"n": 1}, {"n": 3}]


def test_a_kind_of_a_later_version_is_named(tmp_path: Path) -> None:
    import msgpack

    path = tmp_path / "1.journal"
    write_journal(path, [{"n": msgpack.ExtType(9, b"x")}])
    with pytest.raises(ValueError, match="later version"):
        list(read_journal(path))
