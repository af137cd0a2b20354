"""Searches for a moment in a corpus of videos, see `vsr1.search`."""

from __future__ import annotations

import json
from typing import Any

from vsr1.config import Config
from vsr1.environments.spec import HELPED, EnvironmentSpec, Evaluated, EvaluationQuery, Rows
from vsr1.episode.sample import FailedSample, SampleId
from vsr1.formats.annotations import read_annotations
from vsr1.formats.atomic import read_lines
from vsr1.formats.dataset import DatasetFolder
from vsr1.metrics.prediction_rows import failed_row, prediction_row
from vsr1.metrics.predictions import PredictionRow
from vsr1.metrics.published import published_summary
from vsr1.metrics.summary import EvalSummary, summarise
from vsr1.search.record import SearchTask, SearchTrajectory
from vsr1.search.rewards import SearchRewards
from vsr1.storage import has_file
from vsr1.video.clips import clip_file, read_meta


def _is_built(config: Config) -> bool:
    is_last = config.data.teacher.kind == "none"
    return (SEARCHES.training_file(config) if is_last else SEARCHES.sft_file(config)).is_file()


def _training_rows(config: Config) -> Rows:
    path = SEARCHES.training_file(config)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; build the dataset first with `vsr1 data build`")
    live = config.grpo.first_video in ("retrieved", "hopeless")
    rows = [row for row in read_lines(path) if not (live and row["is_augmented"])]
    if not rows:
        raise ValueError(f"{path} holds no record to train on; rebuild the dataset with `vsr1 data build`")
    return rows


def _training_task(row: dict[str, Any], config: Config, place: str, is_helped: bool) -> SearchTask:
    recorded = config.grpo.first_video == "recorded" or row["is_augmented"]
    query_id = row["qid"] + (":augmented" if row["is_augmented"] else "") + (HELPED if is_helped else "")
    return SearchTask(
        id=SampleId(place + query_id),
        query_id=query_id,
        query=row["query"],
        gt_video=row["gt_video"],
        gt_span=(float(row["gt_time"][0]), float(row["gt_time"][1])),
        gt_duration=float(row["gt_duration"]),
        negatives=list(row["hard_negative_ids"])[: config.grpo.negatives],
        first_video=row["gt_video"] if is_helped else row["retrieved_video"] if recorded else None,
        ends_when_lost=config.grpo.end_lost_episodes,
    )


def _evaluation_queries(config: Config, split: str) -> list[EvaluationQuery]:
    folder = DatasetFolder(config.data.root)
    for path in (folder.query_meta(split), folder.docid2row(split)):
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; build split {split!r} first with `vsr1 data build`")
    known = {row["qid"] for row in read_lines(folder.query_meta(split))}
    corpus = json.loads(folder.docid2row(split).read_text(encoding="utf-8"))
    clips = read_meta(folder.clips(split))
    queries = []
    annotations = read_annotations(folder.annotations(split), beyond_duration="keep")
    for index, row in enumerate(annotations[: config.eval.limit]):
        task = SearchTask(SampleId(row.qid), row.qid, row.fig_desc, row.video, row.time, row.duration)
        video = f"{row.video!r} of query {row.qid!r}"
        if row.video not in corpus:
            skipped, message = "pos_doc_missing", f"video {video} is not in the corpus; was it left out of the build?"
        elif row.qid not in known:
            skipped, message = "query_not_found_in_meta", f"query {row.qid!r} is not in {folder.query_meta(split)}"
        elif row.video not in clips or not has_file(clip_file(folder.clips(split), row.video, clips[row.video])):
            skipped, message = "video_file_missing", f"the clip of video {video} is not in {folder.clips(split)}"
        else:
            skipped = message = ""
        queries.append(EvaluationQuery(index, task, skipped, message))
    return queries


def _is_found(trajectory: SearchTrajectory) -> bool:
    """Tell whether a trajectory ends with the right video accepted."""
    record = trajectory.last.record
    return record.verdict == "matched" and record.video_id == trajectory.task.gt_video


def _scored(config: Config, of: Evaluated) -> tuple[list[PredictionRow], EvalSummary]:
    folder = DatasetFolder(config.data.root)
    durations = {name: row["source_duration_sec"] for name, row in read_meta(folder.clips(of.split)).items()}
    durations |= {query.task.gt_video: query.task.gt_duration for query in of.queries}
    corpus_size = len(json.loads(folder.docid2row(of.split).read_text(encoding="utf-8")))
    shared = {"max_turn": of.agent.max_turns, "corpus_size": corpus_size, "fingerprint": of.fingerprint}
    rows: list[PredictionRow] = []
    for query in of.queries:
        outcome = of.outcomes[query.task.id.prompt]
        if isinstance(outcome, FailedSample):
            rows.append(failed_row(query.task, query.index, outcome.reason, outcome.message, **shared))
        else:
            rows.append(prediction_row(outcome, query.index, latents=of.agent.depth, durations=durations, **shared))
    return rows, summarise(rows, corpus_size)


SEARCHES = EnvironmentSpec(
    summary=EvalSummary,
    sft_file=lambda config: DatasetFolder(config.data.root).sft_records(),
    training_file=lambda config: DatasetFolder(config.data.root).grpo_records(),
    is_built=_is_built,
    training_rows=_training_rows,
    training_task=_training_task,
    evaluation_queries=_evaluation_queries,
    rewards=lambda config: SearchRewards(config.rewards),
    succeeded=_is_found,
    scored=_scored,
    figures=lambda summary: {"R@1 after": summary.refined.recall_at_1, "IoU@0.5": summary.moments.iou_05},
    exports=lambda rows: {".published.json": published_summary(rows)},
    has_corpus=True,
)
