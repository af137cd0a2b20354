"""Builds a dataset folder from videos and annotations, in steps that can be resumed.

annotations, clips, query and video vectors, index; of the training split also the top-1 pool, hard negatives, GRPO
records, reasoning and SFT records. What does not need a teacher comes before what does. The same videos, annotations
and embedder give the same files, times of extraction apart, in one go or resumed after a kill; a changed input or
option rebuilds what depends on it and nothing else. Every video ends as a clip or as a named failure; a build with a
larger share of failures than `data.max_failed_fraction` stops before anything is embedded. Every file is written whole
or not at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from pipelines.data.clips import Failure, SplitClips
from pipelines.data.embed import embed, embedder_key, forget_refusals
from pipelines.data.films import write_films
from pipelines.data.manifest import Announce, BuildError, copy_annotations, load_manifest
from pipelines.data.split_steps import SplitSteps
from pipelines.data.steps import Facts, StepLog, StepReport
from pipelines.data.teacher.reasoning import check_teacher
from pipelines.data.workers import RayWorkers
from vsr1.config import Config
from vsr1.environments.registry import environment_of
from vsr1.formats.dataset import TRAIN, DatasetFolder
from vsr1.storage import fetched, fetched_folder, named, sent_folder, url_of
from vsr1.toy.corpus import write_toy_corpus

READ_TOGETHER = ("segment_embeds.npy", "docid2row.json")  # and therefore sent last
__all__ = ["BuildError", "BuildReport", "build_dataset", "ensure_dataset", "ensure_world"]


@dataclass(frozen=True)
class BuildReport:
    """Says what was built; seconds are wall-clock time of the whole stage.

    Attributes:
        recall: by split, the share of queries whose top-1 by the frozen engine is right; none if it is only searched.
        records: by step, what it says of its training records; none if there is no training split.
        embedder: fingerprint of its weights.
    """

    splits: list[SplitClips]
    steps: list[StepReport]
    recall: dict[str, float]
    records: dict[str, Facts]
    embedder: str

    def line(self) -> str:
        """Return one line for a person."""
        parts = [
            f"{split.split}: {len(split.clips)} videos ({split.decoded} decoded, {len(split.clips) - split.decoded} "
            f"kept, {len(split.failures)} failed), {len(split.left.annotations)} queries "
            f"({len(split.manifest.annotations) - len(split.left.annotations)} dropped)"
            + (f", R@1 {100 * self.recall[split.split]:.1f} %" if split.split in self.recall else "")
            for split in self.splits
        ]
        if self.records:
            left = self.records.get("reasoning", {}).get("left_out", 0)
            left_out = f", {left} pairs left out" if left else ""
            with_reasoning = self.records.get("sft_records", {}).get("rows", "no")
            parts.append(f"{with_reasoning} SFT and {self.records['grpo_records']['rows']} GRPO records{left_out}")
        kept = sum(step.status == "kept" for step in self.steps)
        seconds = {name: sum(s.seconds for s in self.steps if s.name == name) for name in ("clips", "embedding")}
        parts.append(f"{len(self.steps) - kept} steps built, {kept} kept")
        parts.append(f"decoding {seconds['clips']:.1f} s, embedding {seconds['embedding']:.1f} s")
        return "; ".join(parts)

    def table(self) -> Table:
        """Return a table with one row a step."""
        table = Table("split", "step", "status", "rows", "seconds", "rows/s")
        for step in self.steps:
            rate = f"{step.rows / step.seconds:.1f}" if step.status == "built" and step.seconds else ""
            table.add_row(step.split, step.name, step.status, str(step.rows), f"{step.seconds:.1f}", rate)
        return table


def build_dataset(
    config: Config, progress: Announce | None = None, embedder_class: Any = None, workers: RayWorkers | None = None
) -> BuildReport:
    """Build every split of `config.data.splits` in `config.data.root`.

    Args:
        progress: called with a line when a step begins or moves on.
        embedder_class: stands in for `vsr1.model.embedder.Embedder` in tests.
        workers: where videos are decoded and embedded; None: on Ray, which must be running.

    Raises:
        AnnotationError: missing or faulty annotations.
        FileNotFoundError: no embedder checkpoint.
        BuildError: two files of one video, a corpus of one video, too many failed videos, a file that could not be
            written, another build in the same folder, or a reasoning teacher that lacks a file or fails too often.
            Finished steps, and finished clips, batches and rows of the one that stopped, are kept.
    """
    data, announce = config.data, progress or (lambda line: None)
    folder = DatasetFolder(_fetched(config, alone=workers is not None).resolve())
    workers = workers or RayWorkers(data, config.model.device)
    log = StepLog(folder, announce)
    with log.only_build():
        embedder = embedder_key(config.model)
        for split in data.splits:
            copy_annotations(folder, split, data)
        clips = [SplitClips(folder, load_manifest(folder, split, data), data) for split in data.splits]
        if TRAIN in data.splits and not data.search_only:
            check_teacher(folder, data)
        for of_split in clips:
            of_split.plan()
        for of_split in clips:
            with log.reported(of_split.split, "clips") as report:
                of_split.make(announce, workers)
                report.rows, report.status = len(of_split.clips), "built" if of_split.is_changed else "kept"
        splits = [SplitSteps(folder, each.left, each.left, each.clips, config, embedder, announce) for each in clips]
        with log.reported("all", "embedding") as report:  # from one pool of actors, because a checkpoint loads long
            pairs = [pair for split in splits for pair in split.vectors(data.search_only)]
            batches = [batch for step, batches in pairs if log.current(step) is None for batch in batches]
            count, refused = embed(folder, batches, config, embedder["weights"], announce, workers, embedder_class)
            report.rows, report.status = sum(len(batch.items) for batch in batches), "built" if count else "kept"
        for of_split, planned in zip(clips, splits, strict=True):
            if of_videos := {name: reason for (split, name), reason in refused.items() if split == of_split.split}:
                try:
                    of_split.refuse({name: Failure("embed", reason) for name, reason in of_videos.items()})
                except BuildError:
                    forget_refusals(batches)  # whoever mends the embedder starts the build again
                    raise
                planned.manifest = of_split.left
        pairs = [pair for split in splits for pair in split.vectors(data.search_only)]
        for step in [*[step for step, _ in pairs], *[split.index() for split in splits]]:
            log.run(step)
        ranked = [] if data.search_only else splits
        recall = {split.manifest.split: log.run(split.recall())["recall_at_1"] for split in ranked}
        steps = [step for split in ranked if split.manifest.split == TRAIN for step in split.records()]
        records = {step.name: log.run(step) for step in steps}
        sent_folder(folder.root, last=lambda file: file.name in READ_TOGETHER)
    return BuildReport(clips, log.reports, recall, records, embedder["weights"])


def _fetched(config: Config, alone: bool) -> Path:
    """Return the dataset folder; of a URL, with all that an earlier build left there.

    Args:
        alone: no node of Ray builds.

    Raises:
        BuildError: other nodes would write the clips of a URL, each to its own disk.
    """
    import ray

    data = config.data
    if url_of(data.root) and not alone and len([node for node in ray.nodes() if node["Alive"]]) > 1:
        raise BuildError(
            f"{named(data.root)} is built on one node, and this cluster has more: build without cluster.address, or in "
            "a folder that all nodes see, and copy that"
        )
    for path in (data.root, data.videos):
        if path:
            fetched_folder(path, keep=path == data.root)
    for path in data.annotations.values():
        fetched(path)
    return data.root


def ensure_dataset(config: Config, progress: Announce | None = None) -> bool:
    """Make the toy world if `toy.create` says so and `data.root` holds no dataset; Ray must be running.

    Returns:
        Whether there was something to build.
    """
    if not ensure_world(config):
        return False
    if environment_of(config).has_corpus:
        build_dataset(config, progress)
    return True


def ensure_world(config: Config) -> bool:
    """Write what a toy dataset is built of, if `toy.create` says so and `data.root` holds none; return whether it does.

    That is videos and annotations, or long films with their questions.
    """
    environment = environment_of(config)
    if not config.toy.create or environment.is_built(config):
        return False
    if environment.has_films:
        write_films(config)
        sent_folder(config.data.root)
    elif not DatasetFolder(config.data.root).annotations("test").is_file():
        render_toy(config)
    return True


def render_toy(config: Config, progress: Callable[[int, int], None] | None = None) -> None:
    """Render the toy corpus of `toy` in `data.root`; `progress` gets videos rendered and videos in all."""
    toy = config.toy
    sizes = toy.model_dump(include={"train", "test", "val", "hard", "queries", "skip"})
    write_toy_corpus(config.data.root, **sizes, seed=config.seed, progress=progress)
