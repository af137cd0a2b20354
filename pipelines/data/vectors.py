"""The vectors of a split, what their rows mean, and the FAISS index (data-eval.md §1.2, §1.3, §1.4, §1.6).

Row i of a file of vectors is row i of the file of metadata beside it and of the index.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from pipelines.data.manifest import Manifest, corpus_row, query_row
from vsr1.formats.atomic import replacing, write_json, write_lines
from vsr1.formats.dataset import DatasetFolder
from vsr1.retrieval.corpus import load_corpus
from vsr1.retrieval.snapshot import set_current, write_snapshot
from vsr1.settings.data import DataConfig
from vsr1.video.clips import read_meta


@dataclass(frozen=True)
class Vectors:
    """Unit vectors of a split, float32: `queries` [Nq, dim] in annotation order, `videos` [Nv, dim] by sorted id."""

    queries: np.ndarray
    videos: np.ndarray


def read_vectors(folder: DatasetFolder, split: str) -> Vectors:
    """What `write_queries` and `write_videos` wrote."""
    queries = np.load(folder.query_embeddings(split), allow_pickle=False)
    return Vectors(queries, np.load(folder.video_embeddings(split), allow_pickle=False))


def write_queries(folder: DatasetFolder, manifest: Manifest, vectors: np.ndarray) -> None:
    """Query vectors and the queries themselves."""
    rows = [query_row(annotation) for annotation in manifest.annotations]
    _write_array(folder.query_embeddings(manifest.split), vectors)
    write_lines(folder.query_meta(manifest.split), rows)
    write_lines(folder.queries(manifest.split), rows)


def write_videos(
    folder: DatasetFolder, manifest: Manifest, vectors: np.ndarray, data: DataConfig, embedder: str
) -> None:
    """Video vectors, the corpus, and how each clip was sampled; `embedder` is the fingerprint of its weights."""
    split = manifest.split
    corpus = [corpus_row(folder, split, video) for video in manifest.videos.values()]
    clips = read_meta(folder.clips(split))
    _write_array(folder.video_embeddings(split), vectors)
    write_lines(folder.corpus(split), corpus)
    write_json(folder.docid2row(split), {video_id: row for row, video_id in enumerate(manifest.videos)})
    write_lines(folder.video_meta(split), [row | {"info": _info(clips[row["doc_id"]])} for row in corpus])
    settings = {"embedder": embedder, "num_rows": len(vectors), "embed_dim": int(vectors.shape[1])}
    write_json(folder.embedding_settings(split), settings | {"timestamps": data.timestamps})


def write_index(folder: DatasetFolder, manifest: Manifest, embedder: str) -> list[Path]:
    """The exact inner-product index of the video vectors with the id of each row, and the current snapshot of both.

    Returns:
        what was written and stays as it is.
    """
    videos = np.load(folder.video_embeddings(manifest.split), allow_pickle=False)
    index = faiss.IndexFlatIP(videos.shape[1])
    index.add(videos)
    with replacing(folder.index(manifest.split)) as part:
        part.write_bytes(faiss.serialize_index(index).data)  # faiss itself names no cause of a failed write
    write_json(folder.id_map(manifest.split), list(manifest.videos))
    snapshots = folder.index(manifest.split).parent
    catalogue, vectors = load_corpus(folder.video_embeddings(manifest.split), folder.docid2row(manifest.split))
    for stale in snapshots.glob("index-*"):
        if catalogue.version not in stale.name:
            stale.unlink()
    write_snapshot(snapshots, catalogue, vectors, embedder=embedder, source=catalogue.version)
    set_current(snapshots, catalogue.version)
    return [folder.index(manifest.split), folder.id_map(manifest.split), *sorted(snapshots.glob("index-*"))]


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
    with replacing(target) as part, part.open("wb") as handle:
        np.lib.format.write_array(handle, array, allow_pickle=False)
