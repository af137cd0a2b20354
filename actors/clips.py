"""The clip stores: one per node, which reads each clip once and keeps it in the object store.

An answer is a copy of the clip, not a reference to the one that is kept: with Ray 2.60 a process that drops a reference
of another owner and gets it again, as a group of samples does, can wait for the object forever.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.handles import RETRIES, Remote, unordered
from actors.logs import log_to
from vsr1.video.clip_cache import ClipCache
from vsr1.video.clips import Clip, ClipReference


class ClipStoreHandle(Protocol):
    """What a handle of a `ClipStoreActor` offers."""

    get: Remote[[str], Clip]
    load: Remote[[str], None]
    forget: Remote[[str], None]
    stats: Remote[[], dict[str, int]]


class ClipReader(Protocol):
    """What the store needs of a clip folder."""

    def read(self, video_id: str) -> Any:
        """Return a clip with `frames` uint8 [T, H, W, 3] and `timestamps` float64 [T]; errors name the clip."""


class ClipStoreActor:
    """Calls run one after the other, so a clip asked for twice at once is still read once."""

    def __init__(self, reader: ClipReader, budget_bytes: int, log: Path | None = None) -> None:
        log_to(log)
        self._reader = reader
        self._cache: ClipCache[ray.ObjectRef] = ClipCache(budget_bytes)
        self._loads = 0
        self._hits = 0

    def get(self, video_id: str) -> Any:
        """Return the clip.

        Raises:
            ValueError: the clip is larger than the whole budget. A missing clip raises what the reader raises.
        """
        held = self._cache.get(video_id)
        if held is None:
            return self._read(video_id)
        self._hits += 1
        return ray.get(held)

    def load(self, video_id: str) -> None:
        """Read the clip if it is not held, so that `get` finds it; raises as `get`."""
        if self._cache.get(video_id) is None:
            self._read(video_id)

    def forget(self, video_id: str) -> None:
        """Read the clip again when it is asked for next."""
        self._cache.drop(video_id)

    def stats(self) -> dict[str, int]:
        """Return counts since the start, and what is held now, in clips and bytes."""
        return {
            "loads": self._loads,
            "hits": self._hits,
            "evictions": self._cache.evictions,
            "clips": len(self._cache),
            "held_bytes": self._cache.held_bytes,
            "budget_bytes": self._cache.budget_bytes,
        }

    def _read(self, video_id: str) -> Any:
        clip = self._reader.read(video_id)
        self._loads += 1
        size = clip.frames.nbytes + clip.timestamps.nbytes
        self._cache.make_room(video_id, size)
        self._cache.put(video_id, ray.put(clip), size)
        return clip


ClipStore: Any = unordered(ClipStoreActor)


class ClipStores:
    """One store for each node that is asked for, held by the driver.

    Args:
        reader: of the clip folder, which every node must see.
        budget_bytes: of each store.
        options: Ray options of each store.
        log: of each store, to which its node is added.
    """

    def __init__(self, reader: ClipReader, budget_bytes: int, options: dict[str, Any], log: Path | None = None) -> None:
        self._reader, self._budget_bytes, self._options = reader, budget_bytes, options
        self._log = log
        self._sent: ray.ObjectRef | None = None  # the reader; a store that starts again needs it in the object store
        self._by_node: dict[str, ClipStoreHandle] = {}
        self._kept: set[str] = set()  # nodes

    def on(self, node_id: str, *, keep: bool = False) -> ClipStoreHandle:
        """Return the handle of the node's store, which is started at the first call.

        Args:
            keep: it is not ended before all are.
        """
        if keep:
            self._kept.add(node_id)
        if node_id not in self._by_node:
            log = self._log and self._log.with_stem(f"{self._log.stem}-{node_id[:8]}")
            self._sent = self._sent or ray.put(self._reader)
            there = NodeAffinitySchedulingStrategy(node_id, soft=False)
            self._by_node[node_id] = ClipStore.options(**self._options, scheduling_strategy=there).remote(
                self._sent, self._budget_bytes, log
            )
        return self._by_node[node_id]

    def end(self, node_id: str) -> bool:
        """End the node's store, so that the node may be idle; tell whether there was one that need not be kept."""
        if node_id in self._kept or node_id not in self._by_node:
            return False
        ray.kill(self._by_node.pop(node_id))
        return True

    def here(self) -> ClipStoreHandle:
        """Return the handle of the store on this process's node."""
        return self.on(ray.get_runtime_context().get_node_id())

    def actors(self) -> list[ClipStoreHandle]:
        """Return the handles of all stores that were started."""
        return list(self._by_node.values())


class StoredClips:
    """Reads the clips of a batch from a store: all are on their way at once, and each is checked when it is read."""

    def __init__(self, store: ClipStoreHandle) -> None:
        self._store = store
        self._answers: dict[ClipReference, ray.ObjectRef] = {}

    def ask(self, references: Iterable[ClipReference]) -> None:
        """Ask for the clips of a batch, and let go of those of the last one."""
        self._answers = {
            reference: self._store.get.options(max_task_retries=RETRIES).remote(reference.video_id)
            for reference in dict.fromkeys(references)
        }

    def __call__(self, reference: ClipReference) -> Clip:
        """Return a clip that was asked for.

        Raises:
            ClipError: it has other content by now, or cannot be read.
        """
        return reference.check(ray.get(self._answers[reference]))
