"""The steps of one split: what each is made from, what it writes, and the call that does it (data-eval.md §1, §2)."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipelines.data.clips import build_clips, clips_options, failures_file
from pipelines.data.embed import Batch, joined, query_batches, video_batches
from pipelines.data.manifest import BuildError, Manifest, corpus_row, query_row
from pipelines.data.ranking import Ranking, rank_videos, recall_at_1
from pipelines.data.records import grpo_records, hard_negatives, pool_rows, sft_records
from pipelines.data.steps import UNANSWERED, Facts, Progress, Step, StepLog
from pipelines.data.teacher.reasoning import failures_file as reasoning_failures
from pipelines.data.teacher.reasoning import teacher_settings, write_reasoning
from pipelines.data.vectors import read_vectors, write_index, write_queries, write_videos
from vsr1.config import Config
from vsr1.formats.atomic import read_lines, replacing, write_json, write_lines
from vsr1.formats.dataset import DatasetFolder
from vsr1.formats.digest import lines_sha256
from vsr1.search.prompts import system_prompt
from vsr1.video.clips import META


def annotations_step(folder: DatasetFolder, split: str, source: Path) -> Step:
    """The annotation file of a split, copied as it is.

    Raises:
        BuildError: it does not exist.
    """
    target = folder.annotations(split)
    if not source.is_file():
        raise BuildError(f"annotation file {source} does not exist; correct data.annotations.{split}")

    def run() -> Facts:
        with replacing(target) as part:
            shutil.copyfile(source, part)
        return {"rows": sum(1 for line in target.read_bytes().split(b"\n") if line.strip())}

    return Step(split, "annotations", run, lambda: [target], files=[source])


def clips_step(folder: DatasetFolder, manifest: Manifest, config: Config, say: Progress) -> Step:
    """Clips, their metadata and the failures, which the facts name too."""
    clips, journal = folder.clips(manifest.split), folder.clips_journal(manifest.split)

    def run() -> Facts:
        outcome = build_clips(folder, manifest, config.data, journal, say)
        kept = [name for name in manifest.videos if name not in outcome.failed]
        return {"rows": len(kept), "decoded": outcome.decoded, "failed": outcome.failed}

    def outputs() -> list[Path]:
        return [
            clips / META,
            failures_file(folder, manifest.split),
            journal,
            *clips.glob("*.npy"),
            *clips.glob("*.mkv"),
        ]

    return Step(
        manifest.split, "clips", run, outputs, options=clips_options(folder, manifest, config.data), by_size=True
    )


@dataclass
class SplitSteps:
    """What follows the clips of a split; `manifest` names the videos that gave one, `embedder` is `embedder_key`'s."""

    folder: DatasetFolder
    manifest: Manifest
    config: Config
    embedder: dict[str, Any]
    log: StepLog
    say: Progress

    def embeddings(self) -> list[tuple[Step, list[Batch]]]:
        """Query and video vectors, each with the batches that must be embedded before the step runs."""
        folder, manifest, data, split = self.folder, self.manifest, self.config.data, self.manifest.split
        parts = self.log.folder / "parts"
        videos = video_batches(manifest, self.embedder, data, folder.clips_journal(split), parts)

        def run_videos() -> Facts:
            write_videos(folder, manifest, joined(videos), data, self.embedder["weights"])
            return {"rows": len(manifest.videos)}

        outputs = [
            folder.video_embeddings(split), folder.docid2row(split), folder.video_meta(split), folder.corpus(split),
            folder.embedding_settings(split),
        ]  # fmt: skip
        corpus = lines_sha256(corpus_row(folder, split, video) for video in manifest.videos.values())
        options = {"parts": [batch.part.name for batch in videos], "corpus": corpus}
        steps = [(Step(split, "video_embedding", run_videos, lambda: outputs, options=options), videos)]
        if data.search_only:
            return steps
        queries = query_batches(manifest, self.embedder, data, parts)

        def run_queries() -> Facts:
            write_queries(folder, manifest, joined(queries))
            return {"rows": len(manifest.annotations)}

        written = [folder.query_embeddings(split), folder.query_meta(split), folder.queries(split)]
        asked = lines_sha256(query_row(row) for row in manifest.annotations)
        options = {"parts": [batch.part.name for batch in queries], "queries": asked}
        return [(Step(split, "query_embedding", run_queries, lambda: written, options=options), queries), *steps]

    def index(self) -> Step:
        """The FAISS index and its snapshot."""
        folder, split = self.folder, self.manifest.split
        written: list[Path] = []

        def run() -> Facts:
            written.extend(write_index(folder, self.manifest, self.embedder["weights"]))
            return {"rows": len(self.manifest.videos)}

        files = [folder.video_embeddings(split), folder.docid2row(split), folder.embedding_settings(split)]
        return Step(split, "index", run, lambda: written, files=files)

    def recall(self) -> Step:
        """How often the frozen engine's first video is the right one; a fact, no file."""

        def run() -> Facts:
            return {"rows": len(self.rankings), "recall_at_1": recall_at_1(self.rankings)}

        return Step(self.manifest.split, "recall", run, list, files=self._ranked)

    def pool(self) -> Step:
        """Two shown videos a query."""

        def run() -> Facts:
            rows = pool_rows(self.folder, self.manifest, self.rankings)
            write_lines(self.folder.top1_pool(), rows)
            return {"rows": len(rows)}

        return Step(self.manifest.split, "top1_pool", run, lambda: [self.folder.top1_pool()], files=self._described)

    def hard_negatives(self) -> Step:
        count = self.config.data.hard_negatives

        def run() -> Facts:
            found = hard_negatives(self.manifest, self.rankings, count)
            write_json(self.folder.hard_negatives(), found)
            return {"rows": len(found)}

        return Step(
            self.manifest.split, "hard_negatives", run, lambda: [self.folder.hard_negatives()],
            files=self._ranked, options={"count": count},
        )  # fmt: skip

    def grpo(self) -> Step:
        """GRPO prompts and their counts."""
        folder, count = self.folder, self.config.data.grpo_negatives
        system = system_prompt(self.config.agent.system_prompt)

        def run() -> Facts:
            rows, stats = grpo_records(self.manifest, self.rankings, system, count)
            write_lines(folder.grpo_records(), rows)
            write_json(folder.grpo_stats(), stats)
            return {"rows": len(rows)}

        return Step(
            self.manifest.split, "grpo_records", run, lambda: [folder.grpo_records(), folder.grpo_stats()],
            files=self._described, options={"negatives": count, "system": system},
        )  # fmt: skip

    def reasoning(self) -> Step:
        """Pairs of the pool with a teacher's reasoning; it runs again while pairs are left without."""
        folder, split = self.folder, self.manifest.split
        seen = folder.events(split) if self.config.data.teacher.kind == "rules" else folder.clips(split) / META

        def run() -> Facts:
            outcome = write_reasoning(folder, read_lines(folder.top1_pool()), self.config, self.say)
            return {"rows": len(outcome.rows), "left_out": outcome.ambiguous, UNANSWERED: len(outcome.failed)}

        return Step(
            split, "reasoning", run, lambda: [folder.reasoning(), reasoning_failures(folder)],
            files=[folder.top1_pool(), seen], options={"teacher": teacher_settings(self.config.data.teacher)},
        )  # fmt: skip

    def sft(self) -> Step:
        """SFT conversations."""
        folder, system = self.folder, system_prompt(self.config.agent.system_prompt)

        def run() -> Facts:
            records = sft_records(read_lines(folder.reasoning()), read_lines(folder.top1_pool()), system)
            write_json(folder.sft_records(), records)
            return {"rows": len(records)}

        return Step(
            self.manifest.split, "sft_records", run, lambda: [folder.sft_records()],
            files=[folder.reasoning(), folder.top1_pool()], options={"system": system},
        )  # fmt: skip

    @cached_property
    def rankings(self) -> list[Ranking]:
        """Of the vectors on disk, made when the first step asks for them; deep enough for every step."""
        depth = max(self.config.data.hard_negatives, self.config.data.grpo_negatives)
        return rank_videos(self.manifest, read_vectors(self.folder, self.manifest.split), depth)

    @property
    def _ranked(self) -> list[Path]:
        """Files that decide the rankings."""
        folder, split = self.folder, self.manifest.split
        vectors = [folder.query_embeddings(split), folder.video_embeddings(split)]
        return [*vectors, folder.query_meta(split), folder.docid2row(split)]

    @property
    def _described(self) -> list[Path]:
        """The same, and those that say when a moment is and how long a video."""
        split = self.manifest.split
        return [*self._ranked, self.folder.annotations(split), self.folder.corpus(split)]
