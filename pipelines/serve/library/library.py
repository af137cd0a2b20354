"""The library: the corpora that are served, each with its retrieval service, its clips and what is added to it."""

from __future__ import annotations

import asyncio
import heapq
import io
import json
import mimetypes
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import ray
from PIL import Image
from ray import serve

from actors.clips import ClipStores
from actors.retrieval import RetrievalService
from pipelines.data.manifest import VIDEO_EXTENSIONS
from pipelines.serve.gateway.schema import Problem, Video, VideoPage
from pipelines.serve.gateway.stream import ApiError
from pipelines.serve.library import sandbox
from pipelines.serve.library.ingest import PROGRESS, Ingestion
from pipelines.stage.workers import CLIP_BUDGET_SHARE, resources
from vsr1.config import Config
from vsr1.formats.dataset import DatasetFolder
from vsr1.retrieval.added import SOURCE, AddedFolder, LibraryClips
from vsr1.search.environment import seconds_shown
from vsr1.video.clips import ClipFolder

CUTS_AT_ONCE = 2
EXAMPLES = 3  # queries that the page offers


class LibraryReplica:
    """Owns the actors of every corpus; there is one."""

    async def __init__(self, config: Config) -> None:  # type: ignore[misc]  # Serve awaits it
        need, corpora, self._serve = config.cluster, config.serve.corpora, config.serve
        budget = int(need.object_store_gib * 2**30 * CLIP_BUDGET_SHARE / len(corpora))
        kept = config.retrieval.model_copy(
            update={"keep_s": config.serve.request_limit_s}
        )  # a search keeps its version
        self._retrieval: dict[str, Any] = {}
        self._stores: dict[str, ClipStores] = {}
        self._clips: dict[str, LibraryClips] = {}
        self._ingestion: dict[str, Ingestion] = {}
        self._cutting = asyncio.Semaphore(CUTS_AT_ONCE)
        for name, corpus in corpora.items():
            data = config.data.model_copy(update={"root": corpus.root})
            own = config.model_copy(update={"data": data, "retrieval": kept})
            added = AddedFolder.of(corpus)
            again = {"max_restarts": -1}  # the agents keep their handles
            service = RetrievalService.options(**resources(need.retrieval), **again).remote(
                own, corpus.split, added=added
            )
            built = ClipFolder(DatasetFolder(corpus.root).clips(corpus.split), data.timestamps)
            self._retrieval[name], self._clips[name] = service, LibraryClips(built, added)
            self._stores[name] = ClipStores(self._clips[name], budget, resources(need.clips) | again)
            self._ingestion[name] = Ingestion(own, corpus, built, service, self._stores[name])

    async def check_health(self) -> None:
        for name, service in self._retrieval.items():
            self._ingestion[name].check_health()
            await service.ready.remote()

    async def parts(self, node: str) -> dict[str, tuple[Any, Any]]:
        """Of each corpus its retrieval service, and its clip store on a node."""
        return {name: (service, self._stores[name].on(node)) for name, service in self._retrieval.items()}

    async def describe(self) -> dict[str, dict[str, Any]]:
        """Of each corpus what `RetrievalService.describe` says."""
        return {name: await service.describe.remote() for name, service in self._retrieval.items()}

    async def accept(self, corpus: str, video_id: str | None, received: str, sha256: str) -> str:
        """As `Ingestion.accept`."""
        return await self._ingestion[corpus].accept(video_id, Path(received), sha256)

    async def delete(self, corpus: str, video_id: str) -> None:
        """As `Ingestion.delete`."""
        await self._ingestion[corpus].delete(video_id)

    async def video(self, corpus: str, video_id: str) -> Video:
        """How far a video is.

        Raises:
            ClipError: the corpus has none of this id.
        """
        found = self._state(corpus, video_id)
        if found.status == "ready":
            found.duration = await asyncio.to_thread(self._seconds, corpus, video_id)
        return found

    async def videos(self, corpus: str, after: str, limit: int) -> VideoPage:
        """At most `limit` videos whose ids come after one."""
        ids = await asyncio.to_thread(self._ingestion[corpus].video_ids)
        found = heapq.nsmallest(limit + 1, (video_id for video_id in ids if video_id > after))
        shown = [self._state(corpus, video_id) for video_id in found[:limit]]
        return VideoPage(videos=shown, next=found[limit - 1] if len(found) > limit else None)

    async def examples(self) -> dict[str, list[str]]:
        """Of each corpus the first queries of its annotations; videos alone have none."""
        return {
            name: _first_queries(DatasetFolder(c.root).annotations(c.split)) for name, c in self._serve.corpora.items()
        }

    async def thumbnail(self, corpus: str, video_id: str, seconds: float) -> bytes:
        """The frame nearest to a time, as JPEG. Raises as `video` does."""
        clip = await asyncio.to_thread(lambda: self._clips[corpus].known(video_id).read(video_id))
        picture = io.BytesIO()
        Image.fromarray(clip.frames[int(np.abs(clip.timestamps - seconds).argmin())]).save(picture, "JPEG", quality=85)
        return picture.getvalue()

    async def source(self, corpus: str, video_id: str) -> tuple[str, str]:
        """Path and media type of the source file.

        Raises:
            ClipError: as `video`.
            ApiError: 404 `no_source`, where it is not at the place that the data build wrote down.
        """
        clips, added = self._clips[corpus].known(video_id), self._ingestion[corpus].added
        if added.has(video_id):
            return str(added.video(video_id) / SOURCE), added.read(video_id).media_type
        place = self._serve.corpora[corpus].root / clips.row(video_id)["source_video_path"]
        if place.suffix.lower() not in VIDEO_EXTENSIONS or not place.is_file():
            raise ApiError(
                404, "no_source",
                f"the source file of video {video_id!r} is not where the data build read it; put it back, or delete "
                "the video and add its file",
            )  # fmt: skip
        return str(place), mimetypes.guess_type(place.name)[0] or "application/octet-stream"

    async def clip(self, corpus: str, video_id: str, start: float, end: float) -> bytes:
        """The pictures of a part of a video, in seconds, as MP4.

        Raises:
            ClipError: as `video`.
            ApiError: 422 `invalid_range` or a code of the sandbox, 404 as `source`.
        """
        length, most = await asyncio.to_thread(self._seconds, corpus, video_id), self._serve.longest_clip_s
        if not start < end <= length or end - start > most:
            raise ApiError(
                422, "invalid_range",
                f"from {start:g} to {end:g} s: start must be before end, end within the video's {length:.3f} s, and "
                f"the part no longer than serve.longest_clip_s={most:g}",
            )  # fmt: skip
        source, _ = await self.source(corpus, video_id)
        async with self._cutting:
            with tempfile.TemporaryDirectory() as folder:
                target = Path(folder) / "clip.mp4"
                try:
                    await sandbox.cut(Path(source), target, (start, end), self._serve.upload)
                except sandbox.SandboxError as error:
                    raise ApiError(422, error.fault.code, error.fault.message) from error
                return await asyncio.to_thread(target.read_bytes)

    def _state(self, corpus: str, video_id: str) -> Video:
        """Without the length; an id that nobody knows counts as ready."""
        ingestion = self._ingestion[corpus]
        if stage := ingestion.stages.get(video_id):
            return Video(video_id=video_id, status=stage, progress=PROGRESS[stage])
        if fault := ingestion.fault(video_id):
            problem = Problem(code=fault.code, message=fault.message)
            return Video(video_id=video_id, status="failed", progress=0, error=problem)
        return Video(video_id=video_id, status="ready", progress=1)

    def _seconds(self, corpus: str, video_id: str) -> float:
        return seconds_shown(self._clips[corpus].known(video_id).read(video_id), "", 0.0)


Library: Any = serve.deployment(LibraryReplica, name="library", num_replicas=1, max_ongoing_requests=64)


def _first_queries(annotations: Path) -> list[str]:
    if not annotations.is_file():
        return []
    with annotations.open(encoding="utf-8") as lines:
        return [json.loads(line)["fig_desc"] for line in islice(filter(str.strip, lines), EXAMPLES)]


def node_id() -> str:
    return str(ray.get_runtime_context().get_node_id())
