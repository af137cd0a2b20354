"""Query and video vectors from a Ray Data actor pool, kept batch by batch.

Batches are cut beforehand, because the batch that a text is padded in moves the last bits of its vector: the same
dataset gives the same vectors with any number of actors. The vectors of a batch are a file named by all that decides
them, so a build that is killed embeds only what is missing, and one changed clip costs its batch. Readers stream the
clips of a batch, at most `data.embed_batch_mib` of frames, as tensors through the object store to the embedders, while
these compute; Ray Data holds the readers back when its share of the store is full, so memory does not grow with the
corpus.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import ray.data

from pipelines.data.clips import clip_key, read_journal
from pipelines.data.manifest import BuildError, Manifest
from vsr1.config import Config
from vsr1.formats.atomic import replacing
from vsr1.formats.dataset import DatasetFolder
from vsr1.formats.digest import file_sha256, value_sha256, weights_fingerprint
from vsr1.settings.data import DataConfig
from vsr1.settings.parts import ModelConfig
from vsr1.video.clips import Clip, ClipFolder

Kind = Literal["query", "video"]
UNIT_TOLERANCE = 1e-3  # of a vector's length
READER_CPUS = 0.5  # of all readers together; the embedders need the rest
EMBED_VERSION = 1  # rises when the code gives other vectors for the same inputs
SETTINGS = (".json", ".jinja", ".txt", ".model")  # files of a checkpoint that decide what the model is given


class EmbedderLike(Protocol):
    """What the build needs of `vsr1.model.embedder.Embedder`."""

    fingerprint: str

    def embed_queries(self, queries: list[str]) -> np.ndarray: ...

    def embed_clips(self, clips: list[Clip]) -> np.ndarray: ...


@dataclass(frozen=True)
class Batch:
    """Texts of queries or ids of videos that are embedded together, and the file their vectors go to."""

    split: str
    kind: Kind
    items: list[str]
    part: Path


class ReaderActor:
    """Adds the clips of a batch to its row: `frames` uint8 [bytes], and for each clip its shape and times."""

    def __init__(self, clips: dict[str, Path], timestamps: Any) -> None:
        self._readers = {split: ClipFolder(folder, timestamps) for split, folder in clips.items()}

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        is_video = row["kind"] == "video"
        clips = [self._readers[row["split"]].read(str(item)) for item in row["items"]] if is_video else []
        empty = np.empty(0, np.uint8)
        return row | {
            "frames": np.concatenate([empty, *[clip.frames.reshape(-1) for clip in clips]]),
            "shapes": [list(clip.frames.shape) for clip in clips],
            "times": [clip.timestamps.tolist() for clip in clips],
        }


class EmbedderActor:
    """One batch a call; made by Ray Data, once in each worker of the pool."""

    def __init__(self, model: ModelConfig, embedder_class: Any) -> None:
        if embedder_class is None:
            from vsr1.model.embedder import Embedder as embedder_class  # noqa: N813  # torch stays out of the driver
        self._embedder: EmbedderLike = embedder_class.load(model.embedder, device=model.device, dtype=model.dtype)

    def __call__(self, row: dict[str, Any]) -> dict[str, str]:
        items = [str(item) for item in row["items"]]
        if row["kind"] == "query":
            vectors = self._embedder.embed_queries(items)
        else:
            vectors = self._embedder.embed_clips(_clips(items, row))
        vectors = np.asarray(vectors, np.float32)
        fault, stop = _fault(row["kind"], items, vectors), ""
        if not fault:
            try:
                with replacing(Path(row["part"])) as part:
                    np.save(part, vectors, allow_pickle=False)
            except OSError as error:
                stop = str(error)
        return {"fault": fault, "stop": stop, "fingerprint": self._embedder.fingerprint}


def _clips(items: list[str], row: dict[str, Any]) -> list[Clip]:
    shapes = [tuple(int(size) for size in shape) for shape in row["shapes"]]
    cuts = np.cumsum([math.prod(shape) for shape in shapes])[:-1]
    frames = np.split(np.asarray(row["frames"]), cuts)
    return [
        Clip.make(item, flat.reshape(shape), np.array(times, np.float64))
        for item, flat, shape, times in zip(items, frames, shapes, row["times"], strict=True)
    ]


def embedder_key(model: ModelConfig) -> dict[str, Any]:
    """What an embedder's vectors depend on, read from its folder without loading it.

    Raises:
        FileNotFoundError: the folder or its weights are missing.
    """
    folder = model.embedder
    settings = sorted(path for path in folder.glob("*") if path.suffix in SETTINGS)
    return {
        "weights": weights_fingerprint(folder),
        "settings": {path.name: file_sha256(path) for path in settings},
        "dtype": model.dtype,
        "device": model.device,
        "version": EMBED_VERSION,
    }


def query_batches(manifest: Manifest, embedder: dict[str, Any], data: DataConfig, parts: Path) -> list[Batch]:
    """The queries of a split in annotation order."""
    texts = [row.fig_desc for row in manifest.annotations]
    cut = [texts[first : first + data.embed_batch] for first in range(0, len(texts), data.embed_batch)]
    folder = parts / f"{manifest.split}.query"
    return [Batch(manifest.split, "query", batch, _part(folder, embedder, batch)) for batch in cut]


def video_batches(
    manifest: Manifest, embedder: dict[str, Any], data: DataConfig, journal: Path, parts: Path
) -> list[Batch]:
    """The clips of a split by sorted id, as many in a batch as its bytes allow."""
    rows = read_journal(journal)
    sizes = {name: row["clip"][0] for name, row in rows.items()}
    folder = parts / f"{manifest.split}.video"
    return [
        Batch(manifest.split, "video", ids, _part(folder, embedder, [clip_key(rows[i], data.timestamps) for i in ids]))
        for ids in _cut(list(manifest.videos), sizes, data.embed_batch, data.embed_batch_mib * 2**20)
    ]


def embed(
    folder: DatasetFolder,
    batches: list[Batch],
    config: Config,
    fingerprint: str,
    progress: Callable[[str], None],
    embedder_class: Any,
) -> None:
    """Write the parts that are not there yet.

    Args:
        fingerprint: of the weights, as `embedder_key` read them.

    Raises:
        BuildError: the embedder gives vectors of another number, or one that is not of length 1; or the weights changed
            since they were read.
        OSError: a part could not be written, as on a full disk.
    """
    missing = [batch for batch in batches if not batch.part.is_file()]
    if not missing:
        return
    model = config.model.model_copy(update={"embedder": config.model.embedder.resolve()})
    clips = {batch.split: folder.clips(batch.split) for batch in missing if batch.kind == "video"}
    progress(f"{len(missing)} of {len(batches)} batches to embed")
    rows = [{"split": b.split, "kind": b.kind, "items": b.items, "part": str(b.part)} for b in missing]
    readers = min(config.data.decode_workers, len(rows))
    read = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        ReaderActor,
        fn_constructor_kwargs={"clips": clips, "timestamps": config.data.timestamps},
        compute=ray.data.ActorPoolStrategy(size=readers),
        num_cpus=READER_CPUS / readers,
    )
    dataset = read.map(
        EmbedderActor,
        fn_constructor_kwargs={"model": model, "embedder_class": embedder_class},
        compute=ray.data.ActorPoolStrategy(size=min(config.data.embed_workers, len(rows))),
        num_cpus=1,
        num_gpus=1 if model.device == "cuda" else 0,
    )
    for done, row in enumerate(dataset.iter_rows(), start=1):
        if row["fault"]:
            raise BuildError(row["fault"])
        if row["stop"]:
            raise OSError(f"vectors of a batch: {row['stop']}")
        if row["fingerprint"] != fingerprint:
            raise BuildError(f"the weights in {model.embedder} changed during the build; start it again")
        if done % 50 == 0:
            progress(f"{done} of {len(missing)} batches embedded")


def joined(batches: list[Batch]) -> np.ndarray:
    """The vectors of batches in their order, float32 [n, dim]; parts of other batches of their kind are deleted."""
    vectors = np.concatenate([np.load(batch.part, allow_pickle=False) for batch in batches])
    needed = {batch.part.name for batch in batches}
    for path in batches[0].part.parent.iterdir():
        if path.name not in needed:
            path.unlink()
    return vectors


def _part(folder: Path, embedder: dict[str, Any], contents: list[str]) -> Path:
    return folder / f"{value_sha256([embedder, contents])}.npy"


def _cut(ids: list[str], sizes: dict[str, int], count: int, budget: int) -> Iterator[list[str]]:
    """Lists of at most `count` ids, of more than one only if they fit `budget` bytes."""
    batch: list[str] = []
    held = 0
    for name in ids:
        if batch and (len(batch) == count or held + sizes[name] > budget):
            yield batch
            batch, held = [], 0
        batch.append(name)
        held += sizes[name]
    if batch:
        yield batch


def _fault(kind: Kind, items: list[str], vectors: np.ndarray) -> str:
    """What is wrong with the vectors of a batch, empty if nothing is."""
    if vectors.ndim != 2 or len(vectors) != len(items):
        return f"the embedder gave vectors {vectors.shape} for {len(items)} {kind} inputs; use another checkpoint"
    lengths = np.linalg.norm(vectors, axis=1)
    wrong = np.flatnonzero(~(np.abs(lengths - 1) < UNIT_TOLERANCE))  # written so that NaN counts as wrong
    if not len(wrong):
        return ""
    return (
        f"the vector of {kind} {items[wrong[0]]!r} has length {lengths[wrong[0]]}, not 1 ({len(wrong)} such in its "
        "batch); check the embedder checkpoint"
    )
