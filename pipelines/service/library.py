"""The library: the corpora that are served, each with its retrieval service and its clips."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import numpy as np
import ray
from PIL import Image
from ray import serve

from actors.clips import ClipStores
from actors.retrieval import RetrievalService
from pipelines.services import CLIP_BUDGET_SHARE, resources
from vsr1.agent.search import seconds_shown
from vsr1.config import Config
from vsr1.formats.clips import ClipFolder
from vsr1.formats.dataset import DatasetFolder


class LibraryReplica:
    """Owns the actors of every corpus; there is one."""

    def __init__(self, config: Config) -> None:
        need, corpora = config.cluster, config.serve.corpora
        budget = int(need.object_store_gib * 2**30 * CLIP_BUDGET_SHARE / len(corpora))
        self._retrieval: dict[str, Any] = {}
        self._clips: dict[str, ClipStores] = {}
        self._folders: dict[str, ClipFolder] = {}
        for name, corpus in corpora.items():
            own = config.model_copy(update={"data": config.data.model_copy(update={"root": corpus.root})})
            again = {"max_restarts": -1}  # the agents keep their handles
            service = RetrievalService.options(**resources(need.retrieval), **again)
            self._retrieval[name] = service.remote(own, corpus.split)
            self._folders[name] = ClipFolder(DatasetFolder(corpus.root).clips(corpus.split), config.data.timestamps)
            self._clips[name] = ClipStores(self._folders[name], budget, resources(need.clips) | again)

    async def check_health(self) -> None:
        for service in self._retrieval.values():
            await service.ready.remote()

    async def parts(self, node: str) -> dict[str, tuple[Any, Any]]:
        """Of each corpus its retrieval service, and its clip store on a node."""
        return {name: (service, self._clips[name].on(node)) for name, service in self._retrieval.items()}

    async def describe(self) -> dict[str, dict[str, Any]]:
        """Of each corpus what `RetrievalService.describe` says."""
        return {name: await service.describe.remote() for name, service in self._retrieval.items()}

    async def video(self, corpus: str, video_id: str) -> float:
        """Seconds of a video.

        Raises:
            ClipError: the corpus has no clip of it.
        """
        return seconds_shown(await asyncio.to_thread(self._folders[corpus].read, video_id), "", 0.0)

    async def thumbnail(self, corpus: str, video_id: str, seconds: float) -> bytes:
        """The frame nearest to a time, as JPEG. Raises as `video` does."""
        clip = await asyncio.to_thread(self._folders[corpus].read, video_id)
        picture = io.BytesIO()
        Image.fromarray(clip.frames[int(np.abs(clip.timestamps - seconds).argmin())]).save(picture, "JPEG", quality=85)
        return picture.getvalue()


Library: Any = serve.deployment(LibraryReplica, name="library", num_replicas=1, max_ongoing_requests=64)


def node_id() -> str:
    return str(ray.get_runtime_context().get_node_id())
