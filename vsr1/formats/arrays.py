"""NumPy's array files (.npy), read without Python's parser.

`numpy.load` gives the header of a file to `ast.parse`, which fails in one of two threads that call it at one time
(SystemError, CPython before 3.11.8 and 3.12.2), and clips are read by many threads.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import numpy as np

_HEADER = re.compile(
    rb"\{'descr': '([<>|=](?:b1|[iu][1248]|f[248]|c8|c16))', 'fortran_order': (True|False), "
    rb"'shape': \(((?:\d+, ?)*(?:\d+)?),?\),? ?\} *\n"
)


def read_array(path: Path, mapped: bool = False) -> np.ndarray:
    """Return the array of a .npy file, in memory or, `mapped`, read-only from the file as it is used.

    Raises:
        ValueError: the file is no whole array of numbers.
    """
    with path.open("rb") as handle:
        if handle.read(6) != b"\x93NUMPY":
            raise ValueError("it does not begin as a .npy file")
        version = handle.read(2)
        length = int.from_bytes(handle.read(2 if version[:1] == b"\x01" else 4), "little")
        header = _HEADER.fullmatch(handle.read(min(length, 10_000)))
        if header is None:
            raise ValueError("its header is not that of an array of numbers")
        descr, fortran, sizes = header.groups()
        dtype = np.dtype(descr.decode())
        shape = tuple(int(size) for size in sizes.replace(b",", b" ").split())
        order: Literal["C", "F"] = "F" if fortran == b"True" else "C"
        if mapped:
            return np.memmap(path, dtype, "r", handle.tell(), shape, order)
        count = int(np.prod(shape, dtype=np.int64))
        values = np.fromfile(handle, dtype, count)
    if len(values) != count:
        raise ValueError(f"it holds {len(values)} of {count} numbers")
    return values.reshape(shape, order=order)
