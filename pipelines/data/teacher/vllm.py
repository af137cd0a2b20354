"""A teacher in vLLM engines of our own, one in each actor of a Ray Data pool.

A block of the data set is a batch, so that answers come back, and can be kept, batch by batch.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import Any, cast

import ray.data

from pipelines.data.teacher.task import Answer, Task, judged
from vsr1.settings.data import TeacherConfig
from vsr1.video.clips import ClipFolder


class TeacherActor:
    """One batch a call; made by Ray Data, once in each worker of the pool."""

    def __init__(self, teacher: TeacherConfig, device: str, clips: ClipFolder) -> None:
        from vsr1.engine.offline import OfflineEngine  # torch and vLLM stay out of the driver

        assert teacher.folder is not None  # the configuration's own check
        self._engine = OfflineEngine(teacher.folder, teacher.engine, device=device, dtype=teacher.dtype)
        self._teacher, self._clips = teacher, clips

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Columns of `Task` to columns of `Answer`, in the same order."""
        from vsr1.engine.offline import VideoPrompt

        columns = {name: [str(value) for value in batch[name]] for name in Task._fields}
        tasks = [Task(*values) for values in zip(*columns.values(), strict=True)]
        prompts = [VideoPrompt(task.system, task.user, self._clips.read(task.video_id)) for task in tasks]
        answers: dict[int, Answer] = {}
        for attempt in range(self._teacher.attempts):
            open_ = [i for i in range(len(tasks)) if i not in answers or answers[i]["error"]]
            if not open_:
                break
            replies = self._engine.generate(
                [prompts[i] for i in open_],
                max_tokens=self._teacher.max_tokens,
                temperature=self._teacher.temperature,
                top_p=self._teacher.top_p,
                seed=self._teacher.seed + attempt,
            )
            for i, reply in zip(open_, replies, strict=True):
                answers[i] = judged(tasks[i].pair_id, reply.text, reply.finish_reason, reply.thinking)
        rows = [cast(dict[str, str], answers[i]) for i in range(len(tasks))]
        return {name: [row[name] for row in rows] for name in Answer.__annotations__}


def ask_engines(
    tasks: list[Task], clips: ClipFolder, teacher: TeacherConfig, device: str
) -> Generator[Answer, None, None]:
    """Answers in the order in which the batches finish; Ray must be running.

    Raises:
        ray.exceptions.RayTaskError: an engine does not start, or a prompt is longer than
            `data.teacher.engine.max_model_len`.
    """
    blocks = math.ceil(len(tasks) / teacher.batch)
    dataset = ray.data.from_items([task._asdict() for task in tasks], override_num_blocks=blocks).map_batches(
        TeacherActor,
        fn_constructor_kwargs={"teacher": teacher, "device": device, "clips": clips},
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=min(teacher.engines, blocks)),
        num_cpus=1,
        num_gpus=1 if device == "cuda" else 0,
    )
    for row in dataset.iter_rows():
        yield cast(Answer, row)
