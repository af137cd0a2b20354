"""What a set of weights is, in numbers small enough to send along: the proof that a push arrived.

The fingerprint covers every bit of a tensor. Where an engine keeps only a packed copy of a matrix, the product with a
fixed vector stands in for it (Freivalds' check): a copy that multiplies differently holds other weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

_CHUNK = 1 << 22  # 8-byte words; bounds the memory that a fingerprint takes
_MASK = (1 << 63) - 1


@dataclass(frozen=True)
class TensorRecord:
    """One tensor of a checkpoint."""

    shape: tuple[int, ...]
    dtype: str
    fingerprint: int
    product: torch.Tensor | None  # float32 [rows], of a matrix on the CPU


Manifest = dict[str, TensorRecord]  # by checkpoint key


def record(tensor: torch.Tensor) -> TensorRecord:
    """Describe a whole tensor."""
    is_packable = tensor.ndim == 2 and tensor.device.type == "cpu"
    product = tensor.float() @ probe(tensor.shape[1]) if is_packable else None
    return TensorRecord(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), fingerprint(tensor), product)


def record_files(paths: Iterable[Path], dtype: str) -> Manifest:
    """Describe the tensors of safetensors files as an engine of this dtype holds them."""
    manifest = {}
    for path in paths:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                manifest[name] = record(file.get_tensor(name).to(getattr(torch, dtype)))
    return manifest


def digest(manifest: Manifest) -> str:
    """Return what names the weights of a manifest: engines that took the same ones verified the same name."""
    tensors = [(name, one.shape, one.dtype, one.fingerprint) for name, one in sorted(manifest.items())]
    return hashlib.blake2b(repr(tensors).encode(), digest_size=8).hexdigest()


def fingerprint(tensor: torch.Tensor) -> int:
    """A number that changes with any bit, and with the order of the elements; equal on every device."""
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % 8)).view(torch.int64)
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for start in range(0, len(padded), _CHUNK):
        words = padded[start : start + _CHUNK]
        places = torch.arange(start, start + len(words), device=words.device)
        total += ((words ^ (words >> 29)) * (2 * places + 1)).sum()  # odd factors keep every bit; sums wrap
    return int(total) & _MASK


def probe(width: int) -> torch.Tensor:
    """The fixed vector of signs, float32 [width]."""
    generator = torch.Generator().manual_seed(width)
    return torch.randint(0, 2, (width,), generator=generator).float() * 2 - 1
