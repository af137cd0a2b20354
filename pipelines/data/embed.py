"""Query and video vectors, kept batch by batch.

Batches are cut beforehand, because the batch that a text is padded in moves the last bits of its vector: the same
dataset gives the same vectors with any number of actors. The vectors of a batch are a file named by all that decides
them, so a build that is killed embeds only what is missing, and one changed clip costs its batch. The clips of a batch
have at most `data.embed_batch_mib` of frames, if it is not one clip.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from pipelines.data.manifest import Announce, BuildError
from pipelines.data.workers import Columns, RayWorkers
from vsr1.config import Config
from vsr1.formats.atomic import replacing
from vsr1.formats.dataset import DatasetFolder
from vsr1.formats.digest import file_sha256, weights_fingerprint
from vsr1.retrieval.request import ClipEmbedder
from vsr1.settings.parts import ModelConfig
from vsr1.video.clips import Clip, ClipFolder

Kind = Literal["query", "video"]
UNIT_TOLERANCE = 1e-3  # of a vector's length
EMBED_VERSION = 1  # rises when the code gives other vectors for the same inputs
SETTINGS = (".json", ".jinja", ".txt", ".model")  # files of a checkpoint that decide what the model is given


class Item(NamedTuple):
    """The text of a query or the id of a video, a digest of all that decides its vector, and its bytes."""

    name: str
    key: str
    size: int


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

    def __call__(self, row: Columns) -> Columns:
        is_video = row["kind"] == "video"
        clips = [self._readers[row["split"]].read(str(item)) for item in row["items"]] if is_video else []
        return row | {
            "frames": np.concatenate([np.empty(0, np.uint8), *[clip.frames.reshape(-1) for clip in clips]]),
            "shapes": [list(clip.frames.shape) for clip in clips],
            "times": [clip.timestamps.tolist() for clip in clips],
        }


class EmbedderActor:
    """Embeds one batch a call and writes its part."""

    def __init__(self, model: ModelConfig, fingerprint: str, embedder_class: Any) -> None:
        if embedder_class is None:
            from vsr1.model.embedder import Embedder as embedder_class  # noqa: N813  # torch stays out of the driver
        self._embedder: ClipEmbedder = embedder_class.load(model.embedder, device=model.device, dtype=model.dtype)
        is_same = self._embedder.fingerprint == fingerprint
        self._problem = "" if is_same else f"the weights in {model.embedder} changed during the build; start it again"

    def __call__(self, row: Columns) -> Columns:
        """Return what is wrong with the vectors, and with the disk they go to, empty if nothing is."""
        items, embedder = [str(item) for item in row["items"]], self._embedder
        vectors = embedder.embed_queries(items) if row["kind"] == "query" else embedder.embed_clips(_clips(items, row))
        vectors = np.asarray(vectors, np.float32)
        fault, stop = self._problem or _fault(row["kind"], items, vectors), ""
        if not fault:
            try:
                with replacing(Path(row["part"])) as part:
                    np.save(part, vectors, allow_pickle=False)
            except OSError as error:
                stop = str(error)
        return {"fault": fault, "stop": stop}


def _clips(items: list[str], row: Columns) -> list[Clip]:
    shapes = [tuple(int(size) for size in shape) for shape in row["shapes"]]
    frames = np.split(np.asarray(row["frames"]), np.cumsum([math.prod(shape) for shape in shapes])[:-1])
    return [
        Clip.make(item, flat.reshape(shape), np.array(times, np.float64))
        for item, flat, shape, times in zip(items, frames, shapes, row["times"], strict=True)
    ]


def embedder_key(model: ModelConfig) -> dict[str, Any]:
    """Read what an embedder's vectors depend on from its folder, without loading it.

    Raises:
        FileNotFoundError: the folder or its weights are missing.
    """
    settings = sorted(path for path in model.embedder.glob("*") if path.suffix in SETTINGS)
    return {
        "weights": weights_fingerprint(model.embedder),
        "settings": {path.name: file_sha256(path) for path in settings},
        "dtype": model.dtype,
        "device": model.device,
        "version": EMBED_VERSION,
    }


def cut_items(items: list[Item], count: int, budget: int) -> list[list[Item]]:
    """Cut lists of at most `count` items, of more than one only if they fit `budget` bytes."""
    cuts: list[list[Item]] = []
    for item in items:
        if not cuts or len(cuts[-1]) == count or sum(one.size for one in cuts[-1]) + item.size > budget:
            cuts.append([])
        cuts[-1].append(item)
    return cuts


def embed(
    folder: DatasetFolder, batches: list[Batch], config: Config, fingerprint: str, announce: Announce,
    workers: RayWorkers, embedder_class: Any,
) -> None:  # fmt: skip
    """Write the parts that are not there yet.

    Args:
        fingerprint: of the weights, as `embedder_key` read them.
        embedder_class: stands in for `vsr1.model.embedder.Embedder`, unless it is None.

    Raises:
        BuildError: the embedder gives vectors of another number, or one that is not of length 1; or the weights change
            meanwhile.
        OSError: a part could not be written, as on a full disk.
    """
    missing = [batch for batch in batches if not batch.part.is_file()]
    if not missing:
        return
    model = config.model.model_copy(update={"embedder": config.model.embedder.resolve()})
    clips = {batch.split: folder.clips(batch.split) for batch in missing if batch.kind == "video"}
    announce(f"{len(missing)} of {len(batches)} batches to embed")
    results = workers.read_and_embed(
        [asdict(batch) | {"part": str(batch.part)} for batch in missing],
        (ReaderActor, {"clips": clips, "timestamps": config.data.timestamps}),
        (EmbedderActor, {"model": model, "fingerprint": fingerprint, "embedder_class": embedder_class}),
    )
    for count, result in enumerate(results, start=1):
        if result["fault"]:
            raise BuildError(result["fault"])
        if result["stop"]:
            raise OSError(f"vectors of a batch: {result['stop']}")
        if count % 50 == 0:
            announce(f"{count} of {len(missing)} batches embedded")


def joined(batches: list[Batch]) -> np.ndarray:
    """Return the vectors of batches in their order, float32 [n, dim], and delete parts of others of their kind."""
    vectors = np.concatenate([np.load(batch.part, allow_pickle=False) for batch in batches])
    needed = {batch.part.name for batch in batches}
    for path in batches[0].part.parent.iterdir():
        if path.name not in needed:
            path.unlink()
    return vectors


def _fault(kind: str, items: list[str], vectors: np.ndarray) -> str:
    """Return what is wrong with the vectors of a batch, empty if nothing is."""
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
