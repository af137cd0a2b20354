"""Query and video vectors, kept batch by batch.

Batches are cut beforehand, because the batch that a text is padded in moves the last bits of its vector: the same
dataset gives the same vectors with any number of actors. The vectors of a batch are a file named by all that decides
them, so a build that is killed embeds only what is missing, and one changed clip costs its batch. The clips of a batch
have at most `data.embed_batch_mib` of frames, if it is not one clip. A clip that cannot be read or that the embedder
refuses has NaN for a vector, and its reason in a file beside the part.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from pipelines.data.manifest import Announce, BuildError
from pipelines.data.workers import Columns, RayWorkers
from vsr1.config import Config
from vsr1.formats.arrays import read_array
from vsr1.formats.atomic import replacing, write_json
from vsr1.formats.dataset import DatasetFolder
from vsr1.formats.digest import file_sha256, weights_fingerprint
from vsr1.retrieval.request import ClipEmbedder
from vsr1.settings.parts import ModelConfig
from vsr1.storage import fetched_folder
from vsr1.video.clips import Clip, ClipFolder
from vsr1.video.container import VideoError
from vsr1.video.faults import work_on

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

    @property
    def refusals(self) -> Path:
        """Return the file with the reasons of the videos that have no vector; it is there if one has none."""
        return self.part.with_suffix(".refused.json")


class ReaderActor:
    """Adds the clips of a batch to its row: `frames` uint8 [bytes], and for each clip its shape and times."""

    def __init__(self, clips: dict[str, Path], timestamps: Any) -> None:
        self._readers = {split: ClipFolder(folder, timestamps) for split, folder in clips.items()}

    def __call__(self, row: Columns) -> Columns:
        clips, refused = [], {}
        for item in map(str, row["items"] if row["kind"] == "video" else ()):
            try:
                with work_on(Path(item), "embed"):
                    clips.append(self._readers[row["split"]].read(item))
            except VideoError as error:
                refused[item] = error.reason
        return row | {
            "frames": np.concatenate([np.empty(0, np.uint8), *[clip.frames.reshape(-1) for clip in clips]]),
            "shapes": [list(clip.frames.shape) for clip in clips],
            "times": [clip.timestamps.tolist() for clip in clips],
            "refused": json.dumps(refused),
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
        refused: dict[str, str] = json.loads(row["refused"])
        items = [item for item in map(str, row["items"]) if item not in refused]
        if row["kind"] == "query":
            vectors = np.asarray(self._embedder.embed_queries(items), np.float32)
        else:
            vectors = self._clip_vectors(_clips(items, row), refused)
        items = [item for item in items if item not in refused]
        fault, stop = self._problem or _fault(row["kind"], items, vectors), ""
        if not fault:
            whole = np.full((len(row["items"]), vectors.shape[1]), np.nan, np.float32)
            whole[[str(item) not in refused for item in row["items"]]] = vectors
            try:
                if refused:
                    write_json(Path(row["refusals"]), refused)
                with replacing(Path(row["part"])) as part:
                    np.save(part, whole, allow_pickle=False)
            except OSError as error:
                stop = str(error)
        return {"fault": fault, "stop": stop}

    def _clip_vectors(self, clips: list[Clip], refused: dict[str, str]) -> np.ndarray:
        """Return the vectors of clips, one by one where they are not embedded together; add those that are refused."""
        if not clips:
            return np.empty((0, 1), np.float32)
        try:
            with work_on(Path(clips[0].video_id), "embed"):
                return np.asarray(self._embedder.embed_clips(clips), np.float32)
        except VideoError as error:
            if len(clips) == 1:
                refused[clips[0].video_id] = error.reason
                return np.empty((0, 1), np.float32)
        vectors = [self._clip_vectors([clip], refused) for clip in clips]
        return np.concatenate([one for one in vectors if len(one)] or vectors[:1])


def _clips(items: list[str], row: Columns) -> list[Clip]:
    shapes = [tuple(int(size) for size in shape) for shape in row["shapes"]]
    frames = np.split(np.asarray(row["frames"]), np.cumsum([math.prod(shape) for shape in shapes])[:-1])
    return [
        Clip.make(item, flat.reshape(shape), np.array(times, np.float64))
        for item, flat, shape, times in zip(items, frames, shapes, row["times"], strict=bool(shapes))
    ]


def embedder_key(model: ModelConfig) -> dict[str, Any]:
    """Read what an embedder's vectors depend on from its folder, without loading it.

    Raises:
        FileNotFoundError: the folder or its weights are missing.
    """
    if not fetched_folder(model.embedder).is_dir():
        raise FileNotFoundError(
            f"model.embedder={model.embedder}: the folder does not exist; name that of a checkpoint"
        )
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
) -> tuple[int, dict[tuple[str, str], str]]:  # fmt: skip
    """Write the parts that are not there yet.

    Args:
        fingerprint: of the weights, as `embedder_key` read them.
        embedder_class: stands in for `vsr1.model.embedder.Embedder`, unless it is None.

    Returns:
        how many batches were embedded, and of each video without a vector, by split and id, the reason.

    Raises:
        BuildError: the embedder gives vectors of another number, or one that is not of length 1; or the weights change
            meanwhile.
        OSError: a part could not be written, as on a full disk.
    """
    missing = [batch for batch in batches if not batch.part.is_file()]
    if missing:
        _embed(folder, missing, config, fingerprint, announce, workers, embedder_class)
    refused: dict[tuple[str, str], str] = {}
    for batch in batches:
        if batch.refusals.is_file():
            reasons = json.loads(batch.refusals.read_text(encoding="utf-8"))
            refused |= {(batch.split, name): reason for name, reason in reasons.items()}
    return len(missing), refused


def _embed(
    folder: DatasetFolder, missing: list[Batch], config: Config, fingerprint: str, announce: Announce,
    workers: RayWorkers, embedder_class: Any,
) -> None:  # fmt: skip
    model = config.model.model_copy(update={"embedder": config.model.embedder.resolve()})
    clips = {batch.split: folder.clips(batch.split) for batch in missing if batch.kind == "video"}
    announce(f"{len(missing)} batches to embed")
    results = workers.read_and_embed(
        [asdict(batch) | {"part": str(batch.part), "refusals": str(batch.refusals)} for batch in missing],
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


def forget_refusals(batches: list[Batch]) -> None:
    """Delete the parts in which a video has no vector, so that they are embedded again."""
    for batch in batches:
        if batch.refusals.is_file():
            batch.part.unlink(missing_ok=True)
            batch.refusals.unlink()


def joined(batches: list[Batch]) -> np.ndarray:
    """Return the vectors of batches in their order, float32 [n, dim], and delete parts of others of their kind."""
    vectors = [read_array(batch.part) for batch in batches]
    needed = {path for batch in batches for path in (batch.part, batch.refusals)}
    for path in batches[0].part.parent.iterdir():
        if path not in needed:
            path.unlink()
    dim = max(part.shape[1] for part in vectors)  # a batch of which every clip was refused does not know it
    return np.concatenate([part if part.shape[1] == dim else np.full((len(part), dim), np.nan) for part in vectors])


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
