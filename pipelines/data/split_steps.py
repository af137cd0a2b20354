"""The steps of one split: what each is made from, and the files that it makes (data-eval.md §1, §2).

Row i of a file of vectors is row i of the file of metadata beside it and of the index.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import faiss

from pipelines.data.clips import ClipRow, clip_key
from pipelines.data.embed import Batch, Item, Kind, cut_items, joined
from pipelines.data.manifest import Announce, Manifest, Row, Video, query_row, video_path
from pipelines.data.records import Ranking, grpo_records, hard_negatives, pool_rows, rank_videos, sft_records
from pipelines.data.steps import UNANSWERED, Facts, Files, Step
from pipelines.data.teacher.reasoning import teacher_settings, write_reasoning
from vsr1.config import Config
from vsr1.formats.arrays import read_array
from vsr1.formats.atomic import read_lines
from vsr1.formats.dataset import TRAIN, DatasetFolder
from vsr1.formats.digest import lines_sha256, value_sha256
from vsr1.retrieval.corpus import CURRENT
from vsr1.search.prompts import system_prompt
from vsr1.video.clips import META, ClipMeta


@dataclass
class SplitSteps:
    """Plans what follows the clips of a split."""

    folder: DatasetFolder
    manifest: Manifest  # of the videos that gave a clip and have a vector
    embedded: Manifest  # with those that were refused a vector: batches are cut from them, so that they stay the same
    clips: dict[str, ClipRow]
    config: Config
    embedder: dict[str, Any]  # as `embedder_key` gives it
    announce: Announce

    def vectors(self, search_only: bool) -> list[tuple[Step, list[Batch]]]:
        """Return the steps of all vectors, each with its batches; videos that are only searched have no queries."""
        return [self.video_vectors()] if search_only else [self.query_vectors(), self.video_vectors()]

    def query_vectors(self) -> tuple[Step, list[Batch]]:
        """Return the step of the query vectors, and the batches that must be embedded before it runs."""
        folder, split = self.folder, self.manifest.split
        rows = [query_row(annotation) for annotation in self.manifest.annotations]
        batches = self._batches("query", [Item(row.fig_desc, row.fig_desc, 0) for row in self.embedded.annotations])

        def make() -> Files:
            has_video = [row.video in self.manifest.videos for row in self.embedded.annotations]
            written = (folder.query_meta(split), folder.queries(split))
            return {folder.query_embeddings(split): joined(batches)[has_video], **dict.fromkeys(written, rows)}

        names = [batch.part.name for batch in batches]
        return self._step("query_embedding", make, parts=names, queries=lines_sha256(rows)), batches

    def video_vectors(self) -> tuple[Step, list[Batch]]:
        """Return the step of the video vectors, and the batches that must be embedded before it runs."""
        folder, split, clips, timestamps = self.folder, self.manifest.split, self.clips, self.config.data.timestamps
        corpus = [self._corpus_row(video) for video in self.manifest.videos.values()]
        items = [Item(v, clip_key(clips[v], timestamps), clips[v]["clip"].size) for v in self.embedded.videos]
        batches = self._batches("video", items)

        def make() -> Files:
            vectors = joined(batches)[[video in self.manifest.videos for video in self.embedded.videos]]
            settings = {"embedder": self.embedder["weights"], "num_rows": len(vectors), "embed_dim": vectors.shape[1]}
            return {
                folder.video_embeddings(split): vectors,
                folder.corpus(split): corpus,
                folder.docid2row(split): {row["doc_id"]: number for number, row in enumerate(corpus)},
                folder.video_meta(split): [row | {"info": _info(clips[row["doc_id"]]["meta"])} for row in corpus],
                folder.embedding_settings(split): settings | {"timestamps": timestamps},
            }

        names = [batch.part.name for batch in batches]
        return self._step("video_embedding", make, parts=names, corpus=lines_sha256(corpus)), batches

    def index(self) -> Step:
        """Return the step of the FAISS index."""
        folder, split = self.folder, self.manifest.split
        files = [folder.video_embeddings(split), folder.docid2row(split), folder.embedding_settings(split)]

        def make() -> Files:
            videos = read_array(folder.video_embeddings(split), mapped=True)
            index = faiss.IndexFlatIP(videos.shape[1])
            index.add(videos)
            place = folder.index(split)
            for path in [*place.parent.glob("index-*"), place.with_name(CURRENT)]:
                path.unlink(missing_ok=True)  # of an older version, which kept the vectors once more
            content = faiss.serialize_index(index).tobytes()  # FAISS itself names no cause of a failed write
            return {folder.id_map(split): list(self.manifest.videos), place: content}

        return self._step("index", make, files)

    def recall(self) -> Step:
        """Return the step that finds how often the frozen engine's first video is the right one; a fact, no file."""

        def make() -> tuple[Files, Facts]:
            ranks = [ranking.truth.rank for ranking in self.rankings]
            return {}, {"rows": len(ranks), "recall_at_1": ranks.count(1) / len(ranks)}

        return self._step("recall", make, self._ranked)

    def records(self) -> list[Step]:
        """Return the steps of the training records in order; that of reasoning runs again while pairs lack it.

        Without a teacher only those are returned that Stage 2 needs.
        """
        folder, manifest, data = self.folder, self.manifest, self.config.data
        pool, reasoning = folder.top1_pool(), folder.reasoning()
        seen = folder.events(TRAIN) if data.teacher.kind == "rules" else folder.clips(TRAIN) / META
        described = [*self._ranked, folder.annotations(TRAIN), folder.corpus(TRAIN)]
        system = system_prompt(self.config.agent.system_prompt)

        def make_negatives() -> Files:
            return {folder.hard_negatives(): hard_negatives(self.rankings, data.hard_negatives)}

        def make_grpo() -> Files:
            rows, stats = grpo_records(manifest, self.rankings, system, data.grpo_negatives)
            return {folder.grpo_records(): rows, folder.grpo_stats(): stats}

        def reason() -> tuple[Files, Facts]:
            outcome = write_reasoning(folder, read_lines(pool), self.config, self.announce)
            facts = {"rows": len(outcome.rows), "left_out": outcome.ambiguous, UNANSWERED: len(outcome.failed)}
            return {reasoning: None, folder.reasoning_failures(): None}, facts

        def make_sft() -> Files:
            return {folder.sft_records(): sft_records(read_lines(reasoning), read_lines(pool), system)}

        labels = [
            self._step("hard_negatives", make_negatives, self._ranked, count=data.hard_negatives),
            self._step("grpo_records", make_grpo, described, negatives=data.grpo_negatives, system=system),
        ]
        if data.teacher.kind == "none":
            return labels
        return [
            self._step("top1_pool", lambda: {pool: pool_rows(folder, manifest, self.rankings)}, described),
            *labels,
            self._step("reasoning", reason, [pool, seen], teacher=teacher_settings(data.teacher)),
            self._step("sft_records", make_sft, [reasoning, pool], system=system),
        ]

    @cached_property
    def rankings(self) -> list[Ranking]:
        """Rankings of the vectors on disk, made when the first step asks for them; deep enough for every step."""
        folder, data, split = self.folder, self.config.data, self.manifest.split
        queries, videos = read_array(folder.query_embeddings(split)), read_array(folder.video_embeddings(split))
        return rank_videos(self.manifest, queries, videos, max(data.hard_negatives, data.grpo_negatives))

    @property
    def _ranked(self) -> list[Path]:
        """Files that decide the rankings."""
        folder, split = self.folder, self.manifest.split
        vectors = [folder.query_embeddings(split), folder.video_embeddings(split)]
        return [*vectors, folder.query_meta(split), folder.docid2row(split)]

    def _step(
        self, name: str, make: Callable[[], Files | tuple[Files, Facts]], files: Sequence[Path] = (), **options: Any
    ) -> Step:
        return Step(self.manifest.split, name, make, files, options)

    def _batches(self, kind: Kind, items: list[Item]) -> list[Batch]:
        """Cut items into batches; each has a file of its own, named by all that decides the vectors in it."""
        split, data, batches = self.manifest.split, self.config.data, []
        for cut in cut_items(items, data.embed_batch, data.embed_batch_mib * 2**20):
            digest = value_sha256([self.embedder, [item.key for item in cut]])
            part = self.folder.build_state / "parts" / f"{split}.{kind}" / f"{digest}.npy"
            batches.append(Batch(split, kind, [item.name for item in cut], part))
        return batches

    def _corpus_row(self, video: Video) -> Row:
        """Return the whole video as one document (data-eval.md §1.2), as long as it is annotated, or else decoded."""
        seconds = video.duration or self.clips[video.video_id]["meta"]["source_duration_sec"]
        return {
            "doc_id": video.video_id,
            "video_id": video.video_id,
            "video_path": video_path(self.folder, self.manifest.split, video),
            "start": 0.0,
            "end": seconds,
            "duration": seconds,
        }


def _info(clip: ClipMeta) -> dict[str, Any]:
    """Return how the embedded frames were sampled, from the clip's metadata."""
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
