"""Versioned, immutable index snapshots of a corpus, and the file that says which one is current.

A snapshot is `index-<version>.faiss` (a flat index, so that it holds the vectors), `index-<version>.ids.json` (their
video ids, row by row) and `index-<version>.json` (its manifest, written last: without it there is no snapshot). What is
read back is whole, or an error says which file is not. `current.json` is replaced in one step.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from vsr1.formats.atomic import replacing, write_json
from vsr1.formats.dataset import DatasetFolder
from vsr1.formats.digest import file_sha256
from vsr1.retrieval.added import AddedFolder
from vsr1.retrieval.corpus import Catalogue, load_corpus, make_catalogue
from vsr1.retrieval.request import RetrievalError

CURRENT = "current.json"


class SnapshotManifest(BaseModel):
    """What a snapshot holds. `source` is the version of the prepared embeddings that it began with."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    version: str
    dim: int
    metric: str
    embedder: str | None  # fingerprint; None where the embeddings do not say
    count: int
    source: str
    sha256: dict[str, str]  # by file name


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A corpus as it was read; `vectors` float32 [n, dim], of length 1, in the catalogue's row order."""

    catalogue: Catalogue
    vectors: np.ndarray
    embedder: str | None  # fingerprint
    source: str  # version of the prepared embeddings that it began with


def open_current(folder: DatasetFolder, split: str) -> Snapshot:
    """The current snapshot of a split, or its prepared embeddings where no snapshot was ever made.

    Raises:
        RetrievalError: files missing, truncated or altered, or embeddings that were built again since the snapshot.
    """
    catalogue, vectors = load_corpus(folder.video_embeddings(split), folder.docid2row(split))
    settings = folder.embedding_settings(split)
    embedder = json.loads(settings.read_text()).get("embedder") if settings.is_file() else None
    index = folder.index(split).parent
    if not (index / CURRENT).is_file():
        return Snapshot(catalogue, vectors, embedder, catalogue.version)
    version = str(json.loads((index / CURRENT).read_text(encoding="utf-8"))["version"])
    found = read_snapshot(index, version)
    if found.source != catalogue.version:
        raise RetrievalError(
            f"{index / CURRENT} names index {version}, which was made from embeddings {found.source}, but "
            f"{folder.video_embeddings(split)} holds {catalogue.version}: remove {CURRENT} to search these"
        )
    return found


def write_snapshot(
    folder: Path, catalogue: Catalogue, vectors: np.ndarray, *, embedder: str | None, source: str
) -> SnapshotManifest:
    """Write a snapshot, unless it is there, without making it current.

    Args:
        vectors: float32 [n, dim], of length 1, row i for `catalogue.video_ids[i]`.

    Raises:
        RetrievalError: the disk is full or not writable; nothing of the snapshot stays then.
    """
    version = catalogue.version
    paths = [folder / f"index-{version}.faiss", folder / f"index-{version}.ids.json"]
    manifest_path = folder / f"index-{version}.json"
    if manifest_path.is_file():
        return _manifest(folder, version)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(np.ascontiguousarray(vectors, np.float32))
    try:
        with replacing(paths[0]) as part:
            faiss.write_index(index, str(part))
        write_json(paths[1], catalogue.video_ids)
        manifest = SnapshotManifest(
            version=version,
            dim=catalogue.dim,
            metric="inner_product",
            embedder=embedder,
            count=len(catalogue),
            source=source,
            sha256={path.name: file_sha256(path) for path in paths},
        )
        write_json(manifest_path, manifest.model_dump())
    except (OSError, RuntimeError) as error:  # FAISS reports a failed write as RuntimeError
        for path in [*paths, manifest_path]:
            path.unlink(missing_ok=True)
        raise RetrievalError(f"snapshot {version} cannot be written to {folder} ({error}); free space there") from error
    return manifest


def read_snapshot(folder: Path, version: str) -> Snapshot:
    """Read and check a snapshot.

    Raises:
        RetrievalError: no such version, or a file that is missing, truncated or altered.
    """
    manifest = _manifest(folder, version)
    for name, digest in manifest.sha256.items():
        path = folder / name
        if not path.is_file() or file_sha256(path) != digest:
            state = "differs from its manifest" if path.is_file() else "is missing"
            raise RetrievalError(f"index version {version}: {path} {state}; restore it or build the index again")
    index = faiss.read_index(str(folder / f"index-{version}.faiss"))
    ids = json.loads((folder / f"index-{version}.ids.json").read_text(encoding="utf-8"))
    vectors = index.reconstruct_n(0, index.ntotal)
    return Snapshot(Catalogue(ids, manifest.dim, version), vectors, manifest.embedder, manifest.source)


def set_current(folder: Path, version: str) -> None:
    """Make a snapshot the one that a service starts with.

    Raises:
        RetrievalError: it does not exist.
    """
    _manifest(folder, version)
    write_json(folder / CURRENT, {"version": version})


def changed(
    catalogue: Catalogue, vectors: np.ndarray, add: dict[str, np.ndarray], remove: list[str]
) -> tuple[Catalogue, np.ndarray]:
    """The corpus with some videos added, replaced or removed; the arguments stay as they are.

    Raises:
        RetrievalError: an id to remove that is not there or also added, a vector of another width, zero or not finite,
            or fewer than two videos left.
    """
    both = sorted(set(add) & set(remove))
    if both:
        raise RetrievalError(f"videos {both[:5]} are to be added and removed at once; name each once")
    gone = catalogue.rows([*remove, *(video_id for video_id in add if video_id in catalogue)], "remove")
    kept = np.setdiff1d(np.arange(len(catalogue)), gone)
    ids = [catalogue.video_ids[row] for row in kept] + list(add)
    new = [np.asarray(vector, np.float32).reshape(-1) for vector in add.values()]
    for video_id, vector in zip(add, new, strict=True):
        if len(vector) != catalogue.dim:
            raise RetrievalError(f"the vector of {video_id!r} has {len(vector)} numbers, the index {catalogue.dim}")
    return make_catalogue(ids, np.concatenate([vectors[kept], *[vector[None] for vector in new]]), "the changed corpus")


def with_added(snapshot: Snapshot, added: AddedFolder, embedder: str) -> tuple[Catalogue, np.ndarray]:
    """The corpus with the videos that a server added to it, and without those that it removed.

    Args:
        embedder: fingerprint of the embedder that queries are embedded with.

    Raises:
        RetrievalError: as `changed`, or a video was added with another embedder.
    """
    videos = added.read_all("videos")
    for video_id, video in videos.items():
        if video.embedder != embedder:
            raise RetrievalError(
                f"{added.video(video_id)} was added with embedder {video.embedder}, but queries are embedded with "
                f"{embedder}: set model.embedder to the one used, or remove the folder and add the video again"
            )
    vectors = {video_id: np.load(added.video(video_id) / "vector.npy", allow_pickle=False) for video_id in videos}
    gone = [name for name in added.removed() if name in snapshot.catalogue and name not in vectors]
    if not vectors and not gone:
        return snapshot.catalogue, snapshot.vectors
    return changed(snapshot.catalogue, snapshot.vectors, vectors, gone)


def _manifest(folder: Path, version: str) -> SnapshotManifest:
    path = folder / f"index-{version}.json"
    if not path.is_file():
        known = sorted(p.name.removesuffix(".faiss").removeprefix("index-") for p in folder.glob("index-*.faiss"))
        raise RetrievalError(f"index version {version!r} is not in {folder}; there are {known or 'none'}")
    try:
        return SnapshotManifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise RetrievalError(f"{path} is not a snapshot's manifest ({error}); build the index again") from error
