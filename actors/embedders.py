"""Further query embedders of a retrieval service, each an actor that loads the same checkpoint as the service.

The service asks the one with least to do; one that dies is started again by Ray, and the others embed meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from actors.handles import Remote, unordered
from actors.logs import log_to
from actors.shards import RECOVERY_PAUSE_S, answer_of_replica
from vsr1.retrieval.replicas import ShardUnavailableError
from vsr1.retrieval.request import QueryEmbedder, RetrievalError
from vsr1.settings.parts import ModelConfig


class FurtherEmbedderActor:
    """One embedder; its calls are made one after the other."""

    def __init__(
        self, model: ModelConfig, load: Callable[[ModelConfig], QueryEmbedder], log: Path | None = None
    ) -> None:
        log_to(log)
        self._embedder = load(model)

    def fingerprint(self) -> str:
        """Return what names the weights."""
        return self._embedder.fingerprint

    def embed_queries(self, queries: list[str], soft_tokens: list[np.ndarray | None]) -> np.ndarray:
        """Answer as `QueryEmbedder.embed_queries`."""
        return self._embedder.embed_queries(queries, soft_tokens)


class EmbedderHandle(Protocol):
    """The handle of an `FurtherEmbedderActor`."""

    fingerprint: Remote[[], str]
    embed_queries: Remote[[list[str], list[np.ndarray | None]], np.ndarray]


FurtherEmbedder: Any = unordered(FurtherEmbedderActor)


class RemoteEmbedder:
    """An `EmbedderClient` that sends its calls to an actor, which must have the weights that `fingerprint` names."""

    def __init__(self, name: str, actor: EmbedderHandle, fingerprint: str) -> None:
        self.name, self.actor, self._fingerprint = name, actor, fingerprint

    async def embed_queries(self, queries: list[str], soft_tokens: list[np.ndarray | None]) -> np.ndarray:
        return await answer_of_replica(self.name, self.actor.embed_queries.remote(queries, soft_tokens))

    async def recover(self) -> None:
        """Return when the embedder can be asked.

        Raises:
            RetrievalError: it cannot start, or has loaded other weights than the service.
        """
        while True:
            try:
                fingerprint = await answer_of_replica(self.name, self.actor.fingerprint.remote(), is_starting=True)
            except ShardUnavailableError:
                await asyncio.sleep(RECOVERY_PAUSE_S)
                continue
            if fingerprint != self._fingerprint:
                raise RetrievalError(
                    f"{self.name} has loaded weights {fingerprint}, the service {self._fingerprint}: the checkpoint of "
                    "model.embedder has changed meanwhile, or is another one on another node"
                )
            return
