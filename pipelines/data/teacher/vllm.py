"""A teacher in vLLM engines of our own, one in each actor of a Ray Data pool.

A row of the data set is a batch, so that answers come back, and can be kept, batch by batch.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from typing import Any

import ray.data

from pipelines.data.teacher.prompts import Answer, Task, judged
from vsr1.settings.data import TeacherConfig
from vsr1.video.clips import ClipFolder


class TeacherActor:
    """One batch a call; made by Ray Data, once in each worker of the pool."""

    def __init__(self, teacher: TeacherConfig, device: str, clips: ClipFolder) -> None:
        from vsr1.engine.offline import OfflineEngine  # torch and vLLM stay out of the driver

        assert teacher.folder is not None  # the configuration's own check
        self._engine = OfflineEngine(teacher.folder, teacher.engine, device=device, dtype=teacher.dtype)
        self._teacher, self._clips = teacher, clips

    def __call__(self, row: dict[str, str]) -> dict[str, str]:
        """Answer a batch of tasks, in their order; both are JSON."""
        from vsr1.engine.offline import VideoPrompt

        tasks = [Task(*fields) for fields in json.loads(row["tasks"])]
        prompts = [VideoPrompt(task.system, task.user, self._clips.read(task.video_id)) for task in tasks]
        answers: dict[int, Answer] = {}
        for attempt in range(self._teacher.attempts):
            pending = [i for i in range(len(tasks)) if i not in answers or answers[i]["error"]]
            if not pending:
                break
            sampling: dict[str, Any] = self._teacher.model_dump(include={"max_tokens", "temperature", "top_p"})
            seed = self._teacher.seed + attempt
            replies = self._engine.generate([prompts[i] for i in pending], seed=seed, **sampling)
            for i, reply in zip(pending, replies, strict=True):
                answers[i] = judged(tasks[i].pair_id, reply.text, reply.finish_reason, reply.thinking)
        return {"answers": json.dumps([answers[i] for i in range(len(tasks))])}


def ask_engines(
    tasks: list[Task], clips: ClipFolder, teacher: TeacherConfig, device: str
) -> Generator[Answer, None, None]:
    """Yield answers in the order in which the batches finish; Ray must be running.

    Raises:
        ray.exceptions.RayTaskError: an engine does not start, or a prompt is longer than
            `data.teacher.engine.max_model_len`.
    """
    batches = [json.dumps(tasks[first : first + teacher.batch]) for first in range(0, len(tasks), teacher.batch)]
    dataset = ray.data.from_items([{"tasks": batch} for batch in batches], override_num_blocks=len(batches)).map(
        TeacherActor,
        fn_constructor_kwargs={"teacher": teacher, "device": device, "clips": clips},
        compute=ray.data.ActorPoolStrategy(size=min(teacher.engines, len(batches))),
        num_cpus=1,
        num_gpus=1 if device == "cuda" else 0,
    )
    for row in dataset.iter_rows():
        yield from json.loads(row["answers"])
