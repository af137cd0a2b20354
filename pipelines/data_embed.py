"""Query and video vectors from a Ray Data actor pool, and the files that hold them (data-eval.md §1.3, §1.4, §1.6).

Each actor loads the embedder once and takes whole batches that were cut beforehand, because the batch that a text is
padded in moves the last bits of its vector: the same dataset gives the same vectors with any number of actors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import faiss
import numpy as np
import ray.data

from pipelines.data_manifest import BuildError, Manifest, corpus_row, query_row
from vsr1.config import Config, DataConfig, ModelConfig
from vsr1.formats.atomic import replacing, write_json, write_lines
from vsr1.formats.clips import Clip, ClipFolder, read_meta
from vsr1.formats.dataset import DatasetFolder

Kind = Literal["query", "video"]
UNIT_TOLERANCE = 1e-3  # of a vector's length


class EmbedderLike(Protocol):
    """What the build needs of `vsr1.model.embedder.Embedder`."""

    fingerprint: str

    def embed_queries(self, queries: list[str]) -> np.ndarray: ...

    def embed_clips(self, clips: list[Clip]) -> np.ndarray: ...


@dataclass(frozen=True)
class Vectors:
    """Unit vectors of a split, float32: `queries` [Nq, dim] in annotation order, `videos` [Nv, dim] by sorted id."""

    queries: np.ndarray
    videos: np.ndarray
    fingerprint: str


class EmbedderActor:
    """One batch a call; made by Ray Data, once in each worker of the pool."""

    def __init__(self, model: ModelConfig, readers: dict[str, ClipFolder], embedder_class: Any) -> None:
        if embedder_class is None:
            from vsr1.model.embedder import Embedder as embedder_class  # noqa: N813  # torch stays out of the driver
        self._embedder: EmbedderLike = embedder_class.load(model.embedder, device=model.device, dtype=model.dtype)
        self._readers = readers

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        items = [str(item) for item in batch["items"]]
        if batch["kind"] == "query":
            vectors = self._embedder.embed_queries(items)
        else:
            vectors = self._embedder.embed_clips([self._readers[batch["split"]].read(item) for item in items])
        key = {name: batch[name] for name in ("split", "kind", "first")}
        return key | {"vectors": np.asarray(vectors, np.float32), "fingerprint": self._embedder.fingerprint}


def embed(
    folder: DatasetFolder,
    manifests: list[Manifest],
    config: Config,
    progress: Callable[[str], None],
    embedder_class: Any,
) -> dict[str, Vectors]:
    """Vectors of every query and video of some splits, by split.

    Raises:
        BuildError: the embedder gives vectors of another number, or one that is not of length 1.
    """
    model = config.model.model_copy(update={"embedder": config.model.embedder.resolve()})
    readers = {m.split: ClipFolder(folder.clips(m.split), config.data.timestamps) for m in manifests}
    batches = [batch for manifest in manifests for batch in _batches(manifest, config.data.embed_batch)]
    progress(f"{len(batches)} batches to embed")
    dataset = ray.data.from_items(batches, override_num_blocks=len(batches)).map(
        EmbedderActor,
        fn_constructor_kwargs={"model": model, "readers": readers, "embedder_class": embedder_class},
        compute=ray.data.ActorPoolStrategy(size=min(config.data.embed_workers, len(batches))),
        num_cpus=1,
        num_gpus=1 if model.device == "cuda" else 0,
    )
    parts = {(row["split"], row["kind"], int(row["first"])): row for row in dataset.iter_rows()}
    vectors = {}
    for manifest in manifests:
        mine = [row for (split, _, _), row in sorted(parts.items()) if split == manifest.split]
        vectors[manifest.split] = Vectors(
            _joined(mine, "query", [row.qid for row in manifest.annotations]),
            _joined(mine, "video", list(manifest.videos)),
            mine[0]["fingerprint"],
        )
    return vectors


def write_vectors(folder: DatasetFolder, manifest: Manifest, vectors: Vectors, data: DataConfig) -> None:
    """Write the vectors of a split, what their rows mean, and the FAISS index; row i of one is row i of the other."""
    split, ids = manifest.split, list(manifest.videos)
    queries = [query_row(annotation) for annotation in manifest.annotations]
    corpus = [corpus_row(folder, split, video) for video in manifest.videos.values()]
    clips = read_meta(folder.clips(split))
    _write_array(folder.query_embeddings(split), vectors.queries)
    write_lines(folder.query_meta(split), queries)
    _write_array(folder.video_embeddings(split), vectors.videos)
    write_json(folder.docid2row(split), {video_id: row for row, video_id in enumerate(ids)})
    write_lines(folder.video_meta(split), [row | {"info": _info(clips[row["doc_id"]])} for row in corpus])
    settings = {"embedder": vectors.fingerprint, "num_rows": len(ids), "embed_dim": int(vectors.videos.shape[1])}
    write_json(folder.video_meta(split).with_name("config.json"), settings | {"timestamps": data.timestamps})
    index = faiss.IndexFlatIP(vectors.videos.shape[1])
    index.add(vectors.videos)
    with replacing(folder.index(split)) as part:
        faiss.write_index(index, str(part))
    write_json(folder.id_map(split), ids)


def _batches(manifest: Manifest, size: int) -> Iterator[dict[str, Any]]:
    kinds: dict[Kind, list[str]] = {
        "query": [row.fig_desc for row in manifest.annotations],
        "video": list(manifest.videos),
    }
    for kind, items in kinds.items():
        for first in range(0, len(items), size):
            yield {"split": manifest.split, "kind": kind, "first": first, "items": items[first : first + size]}


def _joined(parts: list[dict[str, Any]], kind: Kind, names: list[str]) -> np.ndarray:
    """The batches of a kind, which come in order, as one checked array."""
    joined = np.concatenate([np.asarray(part["vectors"], np.float32) for part in parts if part["kind"] == kind])
    if joined.ndim != 2 or len(joined) != len(names):
        raise BuildError(
            f"the embedder gave vectors {joined.shape} for {len(names)} {kind} inputs; use another checkpoint"
        )
    lengths = np.linalg.norm(joined, axis=1)
    wrong = np.flatnonzero(~(np.abs(lengths - 1) < UNIT_TOLERANCE))  # written so that NaN counts as wrong
    if len(wrong):
        raise BuildError(
            f"the vector of {kind} {names[wrong[0]]!r} has length {lengths[wrong[0]]}, not 1 ({len(wrong)} such); "
            "check the embedder checkpoint"
        )
    return joined


def _info(clip: dict[str, Any]) -> dict[str, Any]:
    """How the embedded frames were sampled, from the clip's metadata."""
    indices = clip["sampled_indices_src"]
    return {
        "backend": "pyav",
        "fps": clip["raw_fps"],
        "num_total": clip["source_total_frames"],
        "start_idx": indices[0],
        "end_idx": indices[-1],
        "idxs": indices,
        "frame_size": [clip["output_height"], clip["output_width"]],
        "sample_fps": clip["target_sample_fps"],
        "max_frames": clip["target_max_frames"],
        "sampled_frames": clip["sampled_frames_before_even_pad"],
    }


def _write_array(target: Path, array: np.ndarray) -> None:
    with replacing(target) as part:
        np.save(part, array, allow_pickle=False)
