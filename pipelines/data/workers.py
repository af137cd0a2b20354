"""Where a build has its videos decoded and embedded: on a cluster, by Ray Data.

A task holds one video's frames and gives back a line of text; the frames of a batch go as tensors through the object
store from readers to embedders, while these compute. Ray Data holds the readers back when its share of the store is
full, so memory does not grow with the corpus.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import ray.data
from ray.exceptions import (
    ActorDiedError,
    NodeDiedError,
    ObjectStoreFullError,
    OutOfMemoryError,
    WorkerCrashedError,
)

from vsr1.settings.data import DataConfig

VIDEOS_A_TASK = 8  # at most
READING_CPUS = 0.5  # of all readers together; the embedders need the rest

Columns = dict[str, Any]
Maker = tuple[
    Callable[..., Callable[[Columns], Columns]], dict[str, Any]
]  # a class of functions of a row, and its arguments


class RayWorkers:
    """Tasks and actors of a Ray that is running, as many as `data` says; results come as they are ready."""

    def __init__(self, data: DataConfig, device: str) -> None:
        self._data, self._gpus = data, 1 if device == "cuda" else 0

    def each(self, jobs: list[str], work: Callable[[str], str]) -> Iterator[str]:
        """Do a piece of work for each of at least one job; jobs and results are JSON."""
        blocks = max(math.ceil(len(jobs) / VIDEOS_A_TASK), min(len(jobs), self._data.decode_workers))
        dataset = ray.data.from_items([{"job": job} for job in jobs], override_num_blocks=blocks).map(
            lambda row: {"result": work(row["job"])},
            compute=ray.data.TaskPoolStrategy(size=min(blocks, self._data.decode_workers)),
            num_cpus=1,
        )
        return (row["result"] for row in _rows(dataset))

    def read_and_embed(self, jobs: list[Columns], reader: Maker, embedder: Maker) -> Iterator[Columns]:
        """Give each of at least one job to a reader, and what it makes of it to an embedder."""
        readers = min(self._data.decode_workers, len(jobs))
        batches = ray.data.from_items(jobs, override_num_blocks=len(jobs)).map(
            reader[0],
            fn_constructor_kwargs=reader[1],
            compute=ray.data.ActorPoolStrategy(size=readers),
            num_cpus=READING_CPUS / readers,
        )
        vectors = batches.map(
            embedder[0],
            fn_constructor_kwargs=embedder[1],
            compute=ray.data.ActorPoolStrategy(size=min(self._data.embed_workers, len(jobs))),
            num_cpus=1,
            num_gpus=self._gpus,
        )
        return _rows(vectors)


def _rows(dataset: ray.data.Dataset) -> Iterator[Columns]:
    """Yield the rows of a dataset as they are ready.

    Raises:
        OSError: a worker died, or there is too little memory.
    """
    try:
        yield from dataset.iter_rows()
    except (WorkerCrashedError, ActorDiedError, OutOfMemoryError, NodeDiedError, ObjectStoreFullError) as error:
        raise OSError(f"a worker of Ray is gone: {str(error).strip().partition(chr(10))[0]}") from error
