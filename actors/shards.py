"""The shards of a retrieval service as actors: `vsr1.retrieval.index` and the parts of each version that it holds."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import faiss
import numpy as np
import ray
from ray.exceptions import ActorDiedError, RayActorError

from actors.handles import Remote, unordered
from actors.logs import log_to
from vsr1.retrieval.index import RankTarget, Shard, ShardHits, ShardQueries
from vsr1.retrieval.replicas import ShardUnavailableError
from vsr1.retrieval.request import RetrievalError
from vsr1.settings.parts import RetrievalConfig, ShardConfig

Answer = TypeVar("Answer")
RECOVERY_PAUSE_S = 0.1  # between attempts to reach a replica that is down


class IndexShardActor:
    """One replica of a shard: its part of each version that was loaded."""

    def __init__(self, name: str, config: RetrievalConfig, threads: int, gpu: bool, log: Path | None = None) -> None:
        log_to(log)
        faiss.omp_set_num_threads(threads)
        self._name, self._config, self._gpu = name, config, gpu
        self._versions: dict[str, Shard] = {}

    def load(self, version: str, rows: np.ndarray, vectors: np.ndarray) -> None:
        """Take `rows` int64 [n] and `vectors` float32 [n, dim] of a version; nothing happens if it is there.

        An exact index searches the vectors where they lie, in the object store of this node.
        """
        if version not in self._versions:
            index, parameters = self._config.index, self._config.index_params
            self._versions[version] = Shard(
                self._name, rows, vectors, factory=index, search_params=parameters, gpu=self._gpu
            )

    def unload(self, version: str) -> None:
        """Hold a version no more."""
        self._versions.pop(version, None)

    def search(self, version: str, queries: ShardQueries) -> ShardHits:
        """Answer as `Shard.search`."""
        return self._version(version).search(queries)

    def count_above(self, version: str, targets: list[RankTarget]) -> list[int]:
        """Answer as `Shard.count_above`."""
        return self._version(version).count_above(targets)

    def _version(self, version: str) -> Shard:
        if version not in self._versions:  # started again, and not loaded yet
            raise ShardUnavailableError(self._name, "loading")
        return self._versions[version]


IndexShard: Any = unordered(IndexShardActor)


class ShardHandle(Protocol):
    """The handle of an `IndexShard`."""

    load: Remote[[str, np.ndarray, np.ndarray], None]
    unload: Remote[[str], None]
    search: Remote[[str, ShardQueries], ShardHits]
    count_above: Remote[[str, list[RankTarget]], list[int]]


class RemoteShard:
    """A `ShardClient` that sends its calls to an `IndexShard`; `parts` are what it must hold, by version."""

    def __init__(self, name: str, actor: ShardHandle, parts: dict[str, tuple[np.ndarray, ray.ObjectRef]]) -> None:
        self.name, self.actor, self._parts = name, actor, parts

    async def search(self, version: str, queries: ShardQueries) -> ShardHits:
        return await answer_of_replica(self.name, self.actor.search.remote(version, queries))

    async def count_above(self, version: str, targets: list[RankTarget]) -> list[int]:
        return await answer_of_replica(self.name, self.actor.count_above.remote(version, targets))

    async def recover(self) -> None:
        """Bring the replica what it does not hold yet; return when it holds all.

        Raises:
            RetrievalError: its process cannot start, or an index cannot be built.
        """
        while True:
            try:
                for version, (rows, vectors) in list(self._parts.items()):
                    load = self.actor.load.remote(version, rows, vectors)
                    await answer_of_replica(self.name, load, is_starting=True)
                return
            except ShardUnavailableError:
                await asyncio.sleep(RECOVERY_PAUSE_S)


def faiss_of(shard: ShardConfig) -> dict[str, Any]:
    """Return the Ray options that give a shard's process a FAISS of its own, where the settings name one."""
    if shard.faiss is not None:
        return {"runtime_env": {"env_vars": {"PYTHONPATH": f"{shard.faiss}{os.pathsep}${{PYTHONPATH}}"}}}
    return {"runtime_env": {"pip": shard.pip}} if shard.pip else {}


async def answer_of_replica(name: str, call: Awaitable[Answer], *, is_starting: bool = False) -> Answer:
    """Return the answer of a replica's actor.

    Args:
        is_starting: the caller waits for it to start, again and again.

    Raises:
        ShardUnavailableError: its process is gone, or its node.
        RetrievalError: it will never start.
    """
    try:
        return await call
    except ActorDiedError as error:
        if is_starting:
            reason = str(error).strip().splitlines()[-1].strip()
            raise RetrievalError(f"{name} does not start (ActorDiedError): {reason}; its log tells more") from error
        raise ShardUnavailableError(name, type(error).__name__) from error
    except RayActorError as error:
        raise ShardUnavailableError(name, type(error).__name__) from error
