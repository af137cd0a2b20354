"""Search tasks of a split: GRPO records for training, annotations for evaluation."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vsr1.config import Config
from vsr1.episode.sample import SampleId, hashed_seed
from vsr1.formats.annotations import read_annotations
from vsr1.formats.atomic import read_lines
from vsr1.formats.dataset import TRAIN, DatasetFolder
from vsr1.navigate.files import Question, questions_file, read_questions
from vsr1.navigate.record import drawn_budget, is_right
from vsr1.rl.success import SuccessEstimates
from vsr1.search.record import SearchTask, SearchTrajectory
from vsr1.storage import has_file
from vsr1.video.clips import clip_file, read_meta

Rows = list[dict[str, Any]]
HELPED = ":helped"  # ends the query id of a prompt whose right video is shown first because it hardly ever succeeds


class PromptStream(Iterator[SearchTask]):
    """The queries of the training split without end, each epoch in an order of its own.

    The order of an epoch follows from the run's seed and the epoch's number alone, so `position`, the number of prompts
    that were taken, is all that a resumed run needs. A prompt id is `<epoch>/<row>/<query id>` and never comes twice.
    With `grpo.draw: success` each prompt is an epoch of its own and follows from the estimates as well.

    With `grpo.first_video: recorded` each task names the video of its first turn, and the augmented records take part,
    which name the right one; with `balanced` only these name it, with `hopeless` the prompts that hardly ever succeed.

    Args:
        choose: returns those of the GRPO records that take part.
        success: what the run that goes on had observed.

    Raises:
        FileNotFoundError: the GRPO records are missing.
    """

    def __init__(
        self,
        config: Config,
        position: int = 0,
        choose: Callable[[Rows], Rows] = list,
        success: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        self._config, self._rows = config, choose(_training_rows(config))
        self._names = [str(row) for row in range(len(self._rows))]
        self.position, self.success = position, SuccessEstimates(success)
        self._epoch, self._order = -1, list[int]()

    def __next__(self) -> SearchTask:
        epoch, row = self._drawn() if self._config.grpo.draw == "success" else self._in_order()
        self.position += 1
        is_helped = self._config.grpo.first_video == "hopeless" and self.success.is_hopeless(self._names[row])
        return self._task(epoch, row, is_helped)

    def learned(self, trajectories: Sequence[Any]) -> None:
        """Observe the samples of groups that were learned: a success ends with the right video, or answer."""
        succeeded = is_right if self._config.environment == "navigate" else is_found
        groups: dict[str, list[bool]] = {}
        for one in trajectories:
            groups.setdefault(one.id.prompt, []).append(succeeded(one))
        for prompt, found in groups.items():
            self.success.observe(prompt.split("/", maxsplit=2)[1], sum(found), len(found))

    def _in_order(self) -> tuple[int, int]:
        """Return epoch and row of the next prompt."""
        epoch, place = divmod(self.position, len(self._rows))
        if epoch != self._epoch:
            order = list(range(len(self._rows)))
            random.Random(hashed_seed(self._config.seed, "order of prompts", epoch)).shuffle(order)
            self._epoch, self._order = epoch, order
        return epoch, self._order[place]

    def _drawn(self) -> tuple[int, int]:
        """Return the same of a prompt that is drawn by its success."""
        chance = random.Random(hashed_seed(self._config.seed, "drawn prompt", self.position))
        return self.position, self.success.draw(self._names, chance.random())

    def task(self, prompt: str) -> SearchTask:
        """Return the task of a prompt id that was given out; the position stays."""
        epoch, row, query_id = prompt.split("/", maxsplit=2)
        return self._task(int(epoch), int(row), query_id.endswith(HELPED))

    def _task(self, epoch: int, row: int, is_helped: bool) -> SearchTask:
        if self._config.environment == "navigate":
            return self._question(epoch, row)
        task = _training_task(self._rows[row], self._config)
        if is_helped:
            task = replace(task, query_id=task.query_id + HELPED, first_video=task.gt_video)
        return replace(task, id=SampleId(f"{epoch}/{row}/{task.query_id}"))

    def _question(self, epoch: int, row: int) -> Any:
        """Return the task of a question, with the budget that its prompt id draws for the whole group."""
        question = Question.model_validate(self._rows[row])
        prompt = f"{epoch}/{row}/{question.question_id}"
        return question.task(SampleId(prompt), drawn_budget(self._config.navigate.budgets, self._config.seed, prompt))


def is_found(trajectory: SearchTrajectory) -> bool:
    """Tell whether a trajectory ends with the right video accepted."""
    record = trajectory.last.record
    return record.verdict == "matched" and record.video_id == trajectory.task.gt_video


def training_records(config: Config) -> Path:
    """Return the file of what Stage 2 trains on."""
    folder = DatasetFolder(config.data.root)
    return questions_file(folder, TRAIN) if config.environment == "navigate" else folder.grpo_records()


def _training_rows(config: Config) -> Rows:
    if config.environment == "navigate":
        return [question.model_dump() for question in read_questions(training_records(config))]
    return _grpo_rows(config)


def training_tasks(config: Config) -> list[SearchTask]:
    """Return the tasks of `PromptStream`, each once, with its query id as prompt id.

    Raises:
        FileNotFoundError: the GRPO records are missing.
    """
    return [_training_task(row, config) for row in _grpo_rows(config)]


def _grpo_rows(config: Config) -> Rows:
    path = DatasetFolder(config.data.root).grpo_records()
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; build the dataset first with `vsr1 data build`")
    live = config.grpo.first_video in ("retrieved", "hopeless")
    rows = [row for row in read_lines(path) if not (live and row["is_augmented"])]
    if not rows:
        raise ValueError(f"{path} holds no record to train on; rebuild the dataset with `vsr1 data build`")
    return rows


def _training_task(row: dict[str, Any], config: Config) -> SearchTask:
    recorded = config.grpo.first_video == "recorded" or row["is_augmented"]
    query_id = row["qid"] + (":augmented" if row["is_augmented"] else "")
    return SearchTask(
        id=SampleId(query_id),
        query_id=query_id,
        query=row["query"],
        gt_video=row["gt_video"],
        gt_span=(float(row["gt_time"][0]), float(row["gt_time"][1])),
        gt_duration=float(row["gt_duration"]),
        negatives=list(row["hard_negative_ids"])[: config.grpo.negatives],
        first_video=row["retrieved_video"] if recorded else None,
        ends_when_lost=config.grpo.end_lost_episodes,
    )


def group_of(task: SearchTask, size: int) -> list[SearchTask]:
    """Return the G samples of a prompt."""
    return [replace(task, id=SampleId(task.id.prompt, sample)) for sample in range(size)]


@dataclass(frozen=True)
class EvaluationQuery:
    """One annotation of a split; with a `skipped` reason it cannot be played, and counts as a failure."""

    index: int  # in the annotation file, from 0
    task: SearchTask
    skipped: str = ""  # under the reference's names (data-eval.md §4.3)
    message: str = ""


def evaluation_queries(config: Config, split: str) -> list[EvaluationQuery]:
    """Return the first `eval.limit` annotations of a split in order, each with what keeps it from being played.

    Raises:
        AnnotationError: the split has no annotations, or faulty ones.
        FileNotFoundError: the split is not built.
    """
    folder = DatasetFolder(config.data.root)
    if config.environment == "navigate":
        return _with_each_budget(read_questions(questions_file(folder, split))[: config.eval.limit], config)
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


def _with_each_budget(questions: list[Question], config: Config) -> list[EvaluationQuery]:
    """Return each question with each of `navigate.eval_budgets`."""
    tasks: Any = [
        question.task(SampleId(f"{question.question_id}@{budget:g}"), budget)
        for question in questions
        for budget in config.navigate.eval_budgets
    ]
    return [EvaluationQuery(index, task) for index, task in enumerate(tasks)]
