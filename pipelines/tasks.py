"""Search tasks of a split: GRPO records for training, annotations for evaluation."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import ray.data

from vsr1.agent.search import SearchTask
from vsr1.config import Config
from vsr1.formats.atomic import read_lines
from vsr1.formats.dataset import DatasetFolder

SAMPLE_SEEDS = 1_000_003  # apart from each other by more than any number of turns


def prompt_stream(config: Config) -> Iterator[SearchTask]:
    """Queries of the training split without end, in a new order each epoch, streamed by Ray Data.

    With `grpo.first_video: recorded` the augmented records take part, and each names the video of its first turn.

    Raises:
        FileNotFoundError: the GRPO records are missing.
    """
    unique = _grpo_rows(config)
    order = random.Random(config.seed)
    while True:
        order.shuffle(unique)  # here, because a shuffle in the cluster would wait for a CPU that the actors hold
        for row in ray.data.from_items(unique, override_num_blocks=1).iter_rows():
            yield _training_task(row, config)


def training_tasks(config: Config) -> dict[str, SearchTask]:
    """The tasks of `prompt_stream` by query id.

    Raises:
        FileNotFoundError: the GRPO records are missing.
    """
    tasks = [_training_task(row, config) for row in _grpo_rows(config)]
    return {task.query_id: task for task in tasks}


def _grpo_rows(config: Config) -> list[dict[str, Any]]:
    path = DatasetFolder(config.data.root).grpo_records()
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; build the dataset first with `vsr1 data build`")
    recorded = config.grpo.first_video == "recorded"
    return [row for row in read_lines(path) if recorded or not row["is_augmented"]]


def _training_task(row: dict[str, Any], config: Config) -> SearchTask:
    return SearchTask(
        query_id=row["qid"] + (":augmented" if row["is_augmented"] else ""),
        query=row["query"],
        gt_video=row["gt_video"],
        gt_span=(float(row["gt_time"][0]), float(row["gt_time"][1])),
        gt_duration=float(row["gt_duration"]),
        negatives=list(row["hard_negative_ids"])[: config.grpo.retrieval_loss.negatives],
        first_video=row["retrieved_video"] if config.grpo.first_video == "recorded" else None,
    )


def group_of(task: SearchTask, size: int, seed: int) -> list[SearchTask]:
    """The G samples of a query, each with a seed of its own."""
    return [
        SearchTask(**{**vars(task), "sample": sample, "seed": seed + sample * SAMPLE_SEEDS}) for sample in range(size)
    ]


def evaluation_tasks(config: Config, split: str) -> list[SearchTask]:
    """The queries of a split in annotation order, the first `eval.limit` of them.

    Raises:
        FileNotFoundError: the split has no annotations or no query vectors.
    """
    folder = DatasetFolder(config.data.root)
    for path in (folder.annotations(split), folder.query_meta(split)):
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; build split {split!r} first with `vsr1 data build`")
    spans = {}
    for row in read_lines(folder.annotations(split)):
        spans[f"{row['desc_id']}_fig"] = row
    tasks = []
    for row in read_lines(folder.query_meta(split)):
        annotation = spans[row["qid"]]
        tasks.append(
            SearchTask(
                query_id=row["qid"],
                query=row["query"],
                gt_video=row["pos_doc_id"],
                gt_span=(float(annotation["time"][0]), float(annotation["time"][1])),
                gt_duration=float(annotation["duration"]),
            )
        )
    return tasks[: config.eval.limit]
