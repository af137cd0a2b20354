"""Builds a dataset folder from videos and annotations, in steps that can be resumed.

annotations, clips, query and video vectors, index; of the training split also the top-1 pool, hard negatives, GRPO
records, reasoning and SFT records. What does not need a teacher comes before what does. The same videos, annotations
and embedder give the same files, times of extraction apart, in one go or resumed after a kill; a changed input or
option rebuilds what depends on it and nothing else. Every video ends as a clip or as a named failure; a build with a
larger share of failures than `data.max_failed_fraction` stops before anything is embedded. Every file is written whole
or not at all.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from pipelines.data.clips import read_journal
from pipelines.data.embed import embed, embedder_key
from pipelines.data.manifest import BuildError, Manifest, load_manifest, with_durations
from pipelines.data.split_steps import SplitSteps, annotations_step, clips_step
from pipelines.data.steps import Facts, StepLog, StepReport
from pipelines.data.teacher.reasoning import check_teacher
from vsr1.config import Config
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
    recall_at_1: float | None  # None of a split that is only searched


@dataclass(frozen=True)
class BuildReport:
    """What was built; seconds are wall-clock time of the whole stage."""

    splits: list[SplitReport]
    steps: list[StepReport]
    sft_records: int
    grpo_records: int
    left_out_pairs: int  # for the toy corpus: the wrong video shows the queried events too
    embedder: str  # fingerprint

    @property
    def decode_seconds(self) -> float:
        return sum(step.seconds for step in self.steps if step.name == "clips")

    @property
    def embed_seconds(self) -> float:
        return sum(step.seconds for step in self.steps if step.name == "embedding")

    def line(self) -> str:
        """One line for a person."""
        parts = [_split_line(split) for split in self.splits]
        records = f"{self.sft_records} SFT and {self.grpo_records} GRPO records"
        if self.left_out_pairs:
            records += f", {self.left_out_pairs} pairs left out"
        kept = sum(step.status == "kept" for step in self.steps)
        seconds = f"decoding {self.decode_seconds:.1f} s, embedding {self.embed_seconds:.1f} s"
        return "; ".join([*parts, records, f"{len(self.steps) - kept} steps built, {kept} kept", seconds])

    def table(self) -> Table:
        """One row a step."""
        table = Table("split", "step", "status", "rows", "seconds", "rows/s")
        for step in self.steps:
            rate = f"{step.rows / step.seconds:.1f}" if step.status == "built" and step.seconds else ""
            table.add_row(step.split, step.name, step.status, str(step.rows), f"{step.seconds:.1f}", rate)
        return table


def build_dataset(config: Config, progress: Progress | None = None, embedder_class: Any = None) -> BuildReport:
    """Build every split of `config.data.splits` in `config.data.root`; Ray must be running.

    Args:
        progress: called with a line when a step begins or moves on.
        embedder_class: stands in for `vsr1.model.embedder.Embedder` in tests.

    Raises:
        AnnotationError: missing or faulty annotations.
        FileNotFoundError: no embedder checkpoint.
        BuildError: two files of one video, a corpus of one video, too many failed videos, a file that could not be
            written, another build in the same folder, or a reasoning teacher that lacks a file or fails too often.
            Finished steps, and finished clips, batches and rows of the one that stopped, are kept.
    """
    if not config.data.splits:
        raise BuildError("data.splits is empty; name at least one split, as in data.splits=[train,test]")
    say = progress or (lambda text: None)
    folder = DatasetFolder(config.data.root.resolve())
    log = StepLog(folder.root, say)
    with log.only_build():
        embedder = embedder_key(config.model)
        manifests = [_manifest(folder, split, config, log) for split in config.data.splits]
        if TRAIN in config.data.splits and not config.data.search_only:
            check_teacher(folder, config.data.teacher)
        clips = [_facts_of_clips(folder, manifest, config, log, say) for manifest in manifests]
        built = [
            SplitSteps(folder, _with_clips(folder, manifest, facts, config), config, embedder, log, say)
            for manifest, facts in zip(manifests, clips, strict=True)
        ]
        _embed(folder, built, config, log, say, embedder_class)
        for split in built:
            log.run(split.index())
        recall = [None if config.data.search_only else log.run(split.recall())["recall_at_1"] for split in built]
        records = _records(built, config, log)
    splits = [
        SplitReport(
            split=whole.split,
            videos=facts["rows"],
            decoded=facts["decoded"],
            reused=facts["rows"] - facts["decoded"],
            failed=len(facts["failed"]),
            queries=len(made.manifest.annotations),
            dropped_queries=len(whole.annotations) - len(made.manifest.annotations),
            recall_at_1=share,
        )
        for whole, facts, made, share in zip(manifests, clips, built, recall, strict=True)
    ]
    return BuildReport(splits, log.reports, *records, embedder["weights"])


def ensure_dataset(config: Config, progress: Progress | None = None) -> None:
    """Render and build the toy corpus if `toy.create` says so and `data.root` holds no dataset; Ray must be running."""
    folder = DatasetFolder(config.data.root)
    if config.toy.create and not folder.sft_records().is_file():
        if not folder.events("test").is_file():
            render_toy(config)
        build_dataset(config, progress)


def render_toy(config: Config, progress: Callable[[int, int], None] | None = None) -> None:
    """The toy corpus of `toy` in `data.root`; `progress` gets videos done and videos in all."""
    toy = config.toy
    write_toy_corpus(config.data.root, toy.train, toy.test, config.seed, progress, val=toy.val, queries=toy.queries)


def _manifest(folder: DatasetFolder, split: str, config: Config, log: StepLog) -> Manifest:
    if split in config.data.annotations:
        log.run(annotations_step(folder, split, config.data.annotations[split]))
    return load_manifest(folder, split, config.data)


def _facts_of_clips(folder: DatasetFolder, manifest: Manifest, config: Config, log: StepLog, say: Progress) -> Facts:
    facts = log.run(clips_step(folder, manifest, config, say))
    return facts | {"decoded": facts["decoded"] if log.reports[-1].status == "built" else 0}


def _with_clips(folder: DatasetFolder, manifest: Manifest, facts: Facts, config: Config) -> Manifest:
    """The videos that gave a clip; without annotations they are as long as the decoder found."""
    left = manifest.without(set(facts["failed"]))
    if not config.data.search_only:
        return left
    rows = read_journal(folder.clips_journal(manifest.split))
    return with_durations(left, {name: row["meta"]["source_duration_sec"] for name, row in rows.items()})


def _embed(
    folder: DatasetFolder, built: list[SplitSteps], config: Config, log: StepLog, say: Progress, embedder_class: Any
) -> None:
    """Vectors of all splits from one pool of actors, because a checkpoint takes long to load."""
    began = time.monotonic()
    steps = [pair for split in built for pair in split.embeddings()]
    wanted = [batch for step, batches in steps if log.current(step) is None for batch in batches]
    try:
        embed(folder, wanted, config, built[0].embedder["weights"], say, embedder_class)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise log.unwritten("embedding", error) from error
    items = sum(len(batch.items) for batch in wanted)
    seconds = time.monotonic() - began
    log.reports.append(StepReport("all", "embedding", "built" if wanted else "kept", seconds, items))
    for step, _ in steps:
        log.run(step)


def _records(built: list[SplitSteps], config: Config, log: StepLog) -> tuple[int, int, int]:
    """SFT records, GRPO records and pairs left out."""
    for split in built:
        if split.manifest.split != TRAIN or config.data.search_only:
            continue
        log.run(split.pool())
        log.run(split.hard_negatives())
        grpo = log.run(split.grpo())
        reasoned = log.run(split.reasoning())
        return log.run(split.sft())["rows"], grpo["rows"], reasoned["left_out"]
    return 0, 0, 0


def _split_line(split: SplitReport) -> str:
    recall = "" if split.recall_at_1 is None else f", R@1 {100 * split.recall_at_1:.1f} %"
    return (
        f"{split.split}: {split.videos} videos ({split.decoded} decoded, {split.reused} kept, {split.failed} failed), "
        f"{split.queries} queries ({split.dropped_queries} dropped){recall}"
    )
