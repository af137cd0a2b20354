"""Builds a dataset folder from videos and annotations: clips, vectors, index and training records.

The same videos, annotations and embedder give the same files, times of extraction apart. Every video ends as a clip or
as a named failure; a build with a larger share of failures than `data.max_failed_fraction` stops with an error before
anything is embedded. Every file is written whole or not at all, and clips that are there are kept, so a build can
simply be started again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipelines.data_clips import ClipOutcome, build_clips, failures_file
from pipelines.data_embed import embed, write_vectors
from pipelines.data_manifest import BuildError, Manifest, corpus_row, load_manifest, query_row
from pipelines.data_ranking import Ranking, rank_videos, recall_at_1
from pipelines.data_records import grpo_records, hard_negatives, pool_rows, sft_records
from pipelines.data_teacher import check_teacher, write_reasoning
from vsr1.agent.prompts import system_prompt
from vsr1.config import Config
from vsr1.formats.atomic import write_json, write_lines
from vsr1.formats.dataset import DatasetFolder
from vsr1.toy.corpus import write_toy_corpus

__all__ = ["BuildError", "BuildReport", "SplitReport", "build_dataset", "ensure_dataset"]

TRAIN = "train"
Progress = Callable[[str], None]


@dataclass(frozen=True)
class SplitReport:
    """One split: counts, and the share of queries whose top-1 by the frozen engine is right."""

    split: str
    videos: int
    decoded: int
    reused: int
    failed: int
    queries: int
    dropped_queries: int  # of failed videos
    recall_at_1: float


@dataclass(frozen=True)
class BuildReport:
    """What was built; seconds are wall-clock time of the whole stage."""

    splits: list[SplitReport]
    sft_records: int
    grpo_records: int
    ambiguous_pairs: int  # left out: the wrong video shows the queried events too
    embedder: str  # fingerprint
    decode_seconds: float
    embed_seconds: float

    def line(self) -> str:
        """One line for a person."""
        parts = [
            f"{s.split}: {s.videos} videos ({s.decoded} decoded, {s.reused} kept, {s.failed} failed), "
            f"{s.queries} queries ({s.dropped_queries} dropped), R@1 {100 * s.recall_at_1:.1f} %"
            for s in self.splits
        ]
        records = f"{self.sft_records} SFT and {self.grpo_records} GRPO records"
        if self.ambiguous_pairs:
            records += f", {self.ambiguous_pairs} ambiguous pairs left out"
        seconds = f"decoding {self.decode_seconds:.1f} s, embedding {self.embed_seconds:.1f} s"
        return "; ".join([*parts, records, seconds])


def build_dataset(config: Config, progress: Progress | None = None, embedder_class: Any = None) -> BuildReport:
    """Build every split of `config.data.splits` in `config.data.root`; Ray must be running.

    Args:
        progress: called with a line when a stage begins or moves on.
        embedder_class: stands in for `vsr1.model.embedder.Embedder` in tests.

    Raises:
        AnnotationError: missing or faulty annotations.
        BuildError: a file of the reasoning teacher's is missing or it fails too often, two files of one video, a corpus
            of one video, or too many failed videos. The clips that were made are kept.
    """
    say = progress or (lambda text: None)
    folder = DatasetFolder(config.data.root.resolve())
    if not config.data.splits:
        raise BuildError("data.splits is empty; name at least one split, as in data.splits=[train,test]")
    manifests = [load_manifest(folder, split, config.data.beyond_duration) for split in config.data.splits]
    if TRAIN in config.data.splits:
        check_teacher(folder, config.data.teacher)
    began = time.monotonic()
    outcomes = [build_clips(folder, manifest, config.data, say) for manifest in manifests]
    decode_seconds = time.monotonic() - began
    _check_failures(folder, manifests, outcomes, config.data.max_failed_fraction)
    built = [m.without(set(o.failed)) for m, o in zip(manifests, outcomes, strict=True)]
    began = time.monotonic()
    vectors = embed(folder, built, config, say, embedder_class)
    embed_seconds = time.monotonic() - began
    reports, records = [], (0, 0, 0)
    for manifest, whole, outcome in zip(built, manifests, outcomes, strict=True):
        say(f"{manifest.split}: index and records")
        write_lines(
            folder.corpus(manifest.split), [corpus_row(folder, manifest.split, v) for v in manifest.videos.values()]
        )
        write_lines(folder.queries(manifest.split), [query_row(row) for row in manifest.annotations])
        write_vectors(folder, manifest, vectors[manifest.split], config.data)
        rankings = rank_videos(
            manifest, vectors[manifest.split], max(config.data.hard_negatives, config.data.grpo_negatives)
        )
        if manifest.split == TRAIN:
            records = _write_records(folder, manifest, rankings, config, say)
        reports.append(_split_report(manifest, whole, outcome, rankings))
    return BuildReport(reports, *records, vectors[built[0].split].fingerprint, decode_seconds, embed_seconds)


def ensure_dataset(config: Config, progress: Progress | None = None) -> None:
    """Render and build the toy corpus if `toy.create` says so and `data.root` holds no dataset; Ray must be running."""
    folder = DatasetFolder(config.data.root)
    if config.toy.create and not folder.grpo_records().is_file():
        write_toy_corpus(folder.root, config.toy.train, config.toy.test, config.seed)
        build_dataset(config, progress)


def _write_records(
    folder: DatasetFolder, manifest: Manifest, rankings: list[Ranking], config: Config, progress: Progress
) -> tuple[int, int, int]:
    """SFT records, GRPO records and pairs left out."""
    system = system_prompt(config.agent.system_prompt)
    pool = pool_rows(folder, manifest, rankings)
    outcome = write_reasoning(folder, pool, config, progress)
    conversations = sft_records(outcome.rows, rankings, system)
    prompts, stats = grpo_records(manifest, rankings, system, config.data.grpo_negatives)
    write_json(folder.hard_negatives(), hard_negatives(manifest, rankings, config.data.hard_negatives))
    write_lines(folder.top1_pool(), pool)
    write_json(folder.sft_records(), conversations)
    write_lines(folder.grpo_records(), prompts)
    write_json(folder.grpo_stats(), stats)
    return len(conversations), len(prompts), outcome.ambiguous


def _check_failures(
    folder: DatasetFolder, manifests: list[Manifest], outcomes: list[ClipOutcome], tolerated: float
) -> None:
    for manifest, outcome in zip(manifests, outcomes, strict=True):
        failed, total = outcome.failed, len(manifest.videos)
        if len(failed) <= tolerated * total:
            continue
        named = "; ".join(f"{video_id}: {failed[video_id]}" for video_id in sorted(failed)[:3])
        raise BuildError(
            f"split {manifest.split!r}: {len(failed)} of {total} videos gave no clip ({named}), all of them in "
            f"{failures_file(folder, manifest.split)}; replace these files, or raise "
            f"data.max_failed_fraction={tolerated}"
        )


def _split_report(manifest: Manifest, whole: Manifest, outcome: ClipOutcome, rankings: list[Ranking]) -> SplitReport:
    return SplitReport(
        split=manifest.split,
        videos=len(manifest.videos),
        decoded=outcome.decoded,
        reused=outcome.reused,
        failed=len(outcome.failed),
        queries=len(manifest.annotations),
        dropped_queries=len(whole.annotations) - len(manifest.annotations),
        recall_at_1=recall_at_1(rankings),
    )
