"""One corpus as actors: the retrieval service that searches it, and the clip stores that show its videos.

The only place that starts them. They end with the process that made them, or before it by `CorpusActors.stop`.
"""

from __future__ import annotations

from collections.abc import Awaitable
from pathlib import Path

import ray

from actors.clips import ClipReader, ClipStores
from actors.places import placed, resources
from actors.retrieval import RetrievalHandle, RetrievalService
from vsr1.config import Config
from vsr1.retrieval.added import AddedFolder

CLIP_BUDGET_SHARE = 0.5  # of a node's object store, for the clips of all corpora


class CorpusActors:
    """The retrieval service of one corpus, and on each node that asks for it a clip store.

    Args:
        config: its `data.root` holds the dataset.
        clips: reads the clips of the corpus; every node must see what it reads.
        sharers: corpora that divide the clips' share of the object store.
        name: what Ray calls the retrieval service; None leaves it without a name.
        restarts: how often Ray starts an actor again that dies, -1 for always; its handles stay good.
        added: videos that belong to the corpus beside those that were built.
        logs: folder for a log of each actor.
    """

    def __init__(
        self,
        config: Config,
        split: str,
        clips: ClipReader,
        *,
        sharers: int = 1,
        name: str | None = None,
        restarts: int = 0,
        added: AddedFolder | None = None,
        logs: Path | None = None,
    ) -> None:
        need = config.cluster
        self.retrieval = start_retrieval(config, split, name=name, restarts=restarts, added=added, logs=logs)
        budget = int(need.object_store_gib * 2**30 * CLIP_BUDGET_SHARE / sharers)
        options = resources(need.clips) | {"max_restarts": restarts}
        self.stores = ClipStores(clips, budget, options, logs and logs / f"clips-{split}.log")

    def ready(self) -> Awaitable[None]:
        """Return what to wait for, by `await` or `ray.get`: every shard of the corpus is loaded then."""
        return self.retrieval.ready.remote()

    def stop(self) -> None:
        """End all its actors; the shards end with the retrieval service."""
        for actor in [self.retrieval, *self.stores.actors()]:
            ray.kill(actor)


def start_retrieval(
    config: Config,
    split: str,
    *,
    name: str | None = None,
    restarts: int = 0,
    added: AddedFolder | None = None,
    logs: Path | None = None,
) -> RetrievalHandle:
    """Start the retrieval service alone, for a corpus of which nothing is shown; arguments as of `CorpusActors`."""
    options = placed(config.cluster.retrieval) | {"name": name, "max_restarts": restarts}
    service: RetrievalHandle = RetrievalService.options(**options).remote(config, split, logs=logs, added=added)
    return service
