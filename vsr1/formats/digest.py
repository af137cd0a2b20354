"""sha256 of files and of plain values: what two builds compare to see that nothing changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vsr1.storage import fetched_folder, named

CHUNK = 1 << 22  # bytes read at one time


def file_sha256(*paths: Path) -> str:
    """Return 64 hexadecimal digits over the content of files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as handle:
            while chunk := handle.read(CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def value_sha256(value: Any) -> str:
    """Return 64 hexadecimal digits over a JSON value; the order of keys does not count."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def lines_sha256(rows: Iterable[Any]) -> str:
    """Hash as `value_sha256` does, over many values of which one is held at a time."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(value_sha256(row).encode())
    return digest.hexdigest()


def weights_fingerprint(folder: Path) -> str:
    """Return 16 hexadecimal digits over the weights of a checkpoint folder by file name: safetensors, or else .bin.

    Raises:
        FileNotFoundError: the folder or its weights are missing.
    """
    if not fetched_folder(folder).is_dir():
        raise FileNotFoundError(
            f"model folder {named(folder)} does not exist; model.policy and model.embedder name those of checkpoints"
        )
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    if not weights:
        raise FileNotFoundError(f"model folder {folder} has no .safetensors weights")
    return file_sha256(*weights)[:16]
