"""Reading .npy files: what NumPy writes comes back, what is no whole array is refused, in many threads as in one."""

import ast
import contextlib
import io
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from vsr1.formats.arrays import read_array


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("dtype", ["|u1", "<f4", ">f8", "<i8", "|b1", "<f2"])
@pytest.mark.parametrize("shape", [(20, 6, 4, 3), (7,), (0, 5), ()])
def test_what_numpy_writes_comes_back(tmp_path: Path, shape: tuple[int, ...], dtype: str, mapped: bool) -> None:
    stored = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    for written in (stored, np.array(stored, order="F")):
        np.save(tmp_path / "a.npy", written)
        read = read_array(tmp_path / "a.npy", mapped)
        assert read.dtype == stored.dtype and read.shape == stored.shape and isinstance(read, np.memmap) == mapped
        np.testing.assert_array_equal(read, stored)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version_of_the_header_is_read(tmp_path: Path, version: tuple[int, int]) -> None:
    with (tmp_path / "a.npy").open("wb") as handle:
        np.lib.format.write_array(handle, np.arange(6).reshape(2, 3), version)
    np.testing.assert_array_equal(read_array(tmp_path / "a.npy"), np.arange(6).reshape(2, 3))


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("objects", [np.array([{}, None]), np.zeros(2, [("a", "<i4")])])
def test_objects_and_records_are_refused(tmp_path: Path, objects: np.ndarray, mapped: bool) -> None:
    np.save(tmp_path / "a.npy", objects, allow_pickle=True)
    with pytest.raises(ValueError, match=r"it holds Python objects|its header is not that of an array of numbers"):
        read_array(tmp_path / "a.npy", mapped)


@pytest.mark.parametrize("mapped", [False, True])
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, mapped: bool) -> None:
    whole = io.BytesIO()
    np.save(whole, np.arange(9, dtype=np.float32))
    for length in range(len(whole.getvalue())):
        (tmp_path / "a.npy").write_bytes(whole.getvalue()[:length])
        with pytest.raises(ValueError):
            read_array(tmp_path / "a.npy", mapped)


@pytest.mark.parametrize("mapped", [False, True])
def test_a_header_with_any_byte_changed_is_refused_or_read(tmp_path: Path, mapped: bool) -> None:
    """As a dtype that there is none of: no error but the one that callers know."""
    whole = io.BytesIO()
    np.save(whole, np.arange(9, dtype=np.float32))
    for place in range(whole.getvalue().index(b"\n")):
        damaged = bytearray(whole.getvalue())
        damaged[place] ^= 1
        (tmp_path / "a.npy").write_bytes(damaged)
        with contextlib.suppress(ValueError):
            read_array(tmp_path / "a.npy", mapped)


def test_no_header_reaches_pythons_parser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own fails in one of two threads that use it at one time, before 3.11.8."""
    np.save(tmp_path / "a.npy", np.arange(9))
    for name in ("parse", "literal_eval"):
        monkeypatch.setattr(ast, name, lambda *_args, **_named: pytest.fail("Python's parser was called"))
    assert read_array(tmp_path / "a.npy").sum() == read_array(tmp_path / "a.npy", mapped=True).sum() == 36


def test_many_threads_read_one_file(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(12).reshape(3, 4))
    ready = threading.Barrier(8)

    def read(_: int) -> int:
        ready.wait()
        return sum(int(read_array(tmp_path / "a.npy").sum()) for _ in range(200))

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(read, range(8))) == {200 * 66}
