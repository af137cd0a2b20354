"""Unpacks a downloaded dataset as published: `manifest.json` and its shards (data-eval.md §1.10).

A marker `.videosearch_shards/<shard>.done` stands for files that are in place. It is written last, lists them, and is
believed only while they are there with their sizes; so a run that was killed, or whose files were lost, is simply
started again. A marker of the published tool lists nothing: it is believed where the shard's own table of contents
agrees, or where the shard is gone and cannot be asked.
"""

from __future__ import annotations

import multiprocessing
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, AliasChoices, BaseModel, BeforeValidator, Field, ValidationError

from vsr1.formats.archives import Piece, Shard, ShardError, in_place, members, read_marker, unpack, write_marker

MANIFEST = "manifest.json"
GIB = 1 << 30


class PreparedError(ValueError):
    """A downloaded dataset that cannot be unpacked; the message names every shard at fault."""


def _below(text: str) -> str:
    path = PurePosixPath(text)
    if not path.parts or path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{text!r} is not a path below the downloaded folder")
    return text


Below = Annotated[str, AfterValidator(_below)]


class _Stated(BaseModel):
    size: int | None = Field(None, validation_alias=AliasChoices("size", "size_bytes", "bytes"))
    sha256: str | None = None


class _Part(_Stated):
    path: Below


class _Shard(_Stated):
    name: Below
    parts: list[Annotated[_Part, BeforeValidator(lambda part: {"path": part} if isinstance(part, str) else part)]] = []


class _Manifest(BaseModel):
    shards: list[_Shard] = Field(min_length=1)


@dataclass
class Unpacked:
    """What became of the shards, by name; `trusted` have a marker of the published tool and nothing to check it by."""

    unpacked: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    trusted: list[str] = field(default_factory=list)
    files: int = 0  # written
    bytes: int = 0

    def line(self) -> str:
        parts = [f"{len(self.unpacked)} shards unpacked ({self.files} files, {self.bytes / GIB:.2f} GiB)"]
        parts += [f"{len(self.kept)} in place"] if self.kept else []
        parts += [f"{len(self.trusted)} gone, taken on their markers' word"] if self.trusted else []
        return ", ".join(parts)


def read_manifest(source: Path) -> list[Shard]:
    """Read the shards of a downloaded folder, in the manifest's order.

    Raises:
        PreparedError: no manifest, a malformed one, or one that names a file outside the folder or a shard twice.
    """
    path = source / MANIFEST
    if not path.is_file():
        raise PreparedError(f"{path} does not exist; give the folder that the published data was downloaded to")
    try:
        manifest = _Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(key) for key in first["loc"]) or "whole file"
        raise PreparedError(f"{path}: {place}: {first['msg']}; fetch it again") from error
    names = [shard.name for shard in manifest.shards]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise PreparedError(f"{path} names {twice} more than once; fetch it again")
    return [_shard(source, entry) for entry in manifest.shards]


def unpack_dataset(source: Path, root: Path, workers: int, progress: Callable[[str], None]) -> Unpacked:
    """Unpack what is not in place yet, several shards at a time.

    Args:
        source: folder with `manifest.json`, `shards/` and parts; only read.
        root: dataset folder to fill; may be `source` itself.

    Raises:
        PreparedError: missing or damaged shards, or ones that another process is unpacking (all of them are named, the
            others are unpacked), or too little disk.
    """
    shards = read_manifest(source)
    root.mkdir(parents=True, exist_ok=True)
    states = {shard.name: _state(shard, root) for shard in shards}
    report = Unpacked(
        kept=[name for name, state in states.items() if state == "kept"],
        trusted=[name for name, state in states.items() if state == "trusted"],
    )
    pending = [shard for shard in shards if states[shard.name] is None]
    faults = {shard.name: "; ".join(shard.faults()) for shard in pending if shard.faults()}
    pending = [shard for shard in pending if shard.name not in faults]
    _check_disk(root, sum(shard.stored_bytes() for shard in pending))
    # A fresh interpreter a worker: a forked one would inherit threads of whoever calls this.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max(1, min(workers, len(pending))), mp_context=context) as pool:
        running = {pool.submit(unpack, shard, root): shard.name for shard in pending}
        for task in as_completed(running):
            name = running[task]
            try:
                files = task.result()
            except ShardError as error:
                faults[name] = str(error)
                continue
            report.unpacked.append(name)
            report.files += len(files)
            report.bytes += sum(files.values())
            progress(f"{name}: {len(files)} files ({len(report.unpacked)} of {len(pending)} shards)")
    if faults:
        listing = "\n  ".join(f"{name}: {reason}" for name, reason in sorted(faults.items()))
        raise PreparedError(
            f"{source}: {len(faults)} of {len(shards)} shards cannot be unpacked; fetch these again and repeat, the "
            f"others are kept\n  {listing}"
        )
    return report


def _shard(source: Path, entry: _Shard) -> Shard:
    pieces = [Piece(source / part.path, part.size, part.sha256) for part in entry.parts]
    whole = Piece(source / "shards" / entry.name)
    return Shard(entry.name, tuple(pieces or [whole]), size=entry.size, sha256=entry.sha256)


def _state(shard: Shard, root: Path) -> Literal["kept", "trusted"] | None:
    """Return `kept` or `trusted`, or None for a shard that is to be unpacked."""
    marker = read_marker(shard, root)
    if marker is None:
        return None
    is_gone = not all(piece.path.is_file() for piece in shard.pieces)
    if marker:
        same = is_gone or marker["stored_bytes"] == shard.stored_bytes()
        return "kept" if same and in_place(marker["files"], root) else None
    if is_gone:
        return "trusted"
    try:
        files = members(shard)
    except ShardError:
        return None  # unpacking it says what is wrong, beside what is wrong with the others
    if not in_place(files, root):
        return None
    write_marker(shard, root, files)
    return "kept"


def _check_disk(root: Path, needed: int) -> None:
    free = shutil.disk_usage(root).free
    if needed > free:
        raise PreparedError(
            f"{root}: {needed / GIB:.1f} GiB are needed and {free / GIB:.1f} GiB are free; free some space, or unpack "
            "onto another disk with --out"
        )
