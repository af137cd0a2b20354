"""Bringing videos into one corpus while it is searched: queued, decoded, embedded, indexed, one after the other.

What is on disk decides: after a kill, a video that was on its way begins again and one that was ready is ready. The
clip and the vector are made by the calls that the data build makes.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Literal

from ray.exceptions import ObjectLostError, RayActorError

from actors.corpus import CorpusActors
from pipelines.data.clips import read_journal
from pipelines.serve.gateway.faults import ApiError, reason
from pipelines.serve.library import sandbox
from vsr1.formats.dataset import DatasetFolder
from vsr1.retrieval.added import SOURCE, AddedFolder, AddedVideo, Fault, LibraryClips
from vsr1.retrieval.request import RetrievalError
from vsr1.settings.data import DataConfig
from vsr1.settings.serving import CorpusConfig, ServeConfig
from vsr1.video.clips import ClipFolder

Stage = Literal["queued", "decoding", "embedding", "indexing"]
PROGRESS: dict[Stage, float] = {"queued": 0.0, "decoding": 0.0, "embedding": 1 / 3, "indexing": 2 / 3}


class Ingestion:
    """Make it inside an event loop: it begins at once with what an earlier one left.

    Args:
        data: how clips are made.
        actors: of the corpus; their stores may hold another clip of an id that is used again.
    """

    def __init__(
        self, settings: ServeConfig, corpus: CorpusConfig, data: DataConfig, clips: LibraryClips, actors: CorpusActors
    ) -> None:
        self._settings, self._limits, self._data = settings, settings.upload, data
        self.clips, self.actors, self.added = clips, actors, AddedFolder.of(corpus)
        self.stages: dict[str, Stage] = {}
        self._queue: asyncio.Queue[str] = asyncio.Queue()
        self._deleting = asyncio.Lock()
        self.added.purge_all()
        incoming = {name: video for name, video in self.added.read_all("incoming").items() if video.fault is None}
        here = self.added.read_all("videos") | incoming
        self._ids = _built_hashes(corpus, set(self.added.removed())) | {v.sha256: name for name, v in here.items()}
        for name in incoming:
            self.stages[name] = "queued"
            self._queue.put_nowait(name)
        self._worker = asyncio.create_task(self._work())

    def check_health(self) -> None:
        """Raise what ended the work, if it ended."""
        if self._worker.done():
            self._worker.result()

    async def accept(self, video_id: str | None, received: Path, sha256: str) -> str:
        """Take a folder of `receiving` with its whole source, and return the id of the video that it becomes.

        Raises:
            ApiError: 409 `duplicate_video` or `video_exists`, 429 `busy`, 422 with a code of `check_video` or
                `decode_limit`.
        """
        name = video_id or f"video-{sha256[:12]}"
        if sha256 in self._ids:
            raise ApiError("duplicate_video", f"the corpus has this file as video {self._ids[sha256]!r}")
        if self._exists(name):
            raise ApiError("video_exists", f"the corpus has another video {name!r}; delete it, or name this one")
        if len(self.stages) >= self._limits.waiting:
            raise ApiError("busy", f"{len(self.stages)} videos of this corpus are on their way; try again", 10)
        self.stages[name], self._ids[sha256] = "queued", name
        try:
            media_type = await sandbox.check(received / SOURCE, self._limits)
            self.added.accept(received, AddedVideo(video_id=name, sha256=sha256, media_type=media_type))
        except BaseException:  # also when the request is cancelled
            del self.stages[name], self._ids[sha256]
            raise
        self._queue.put_nowait(name)
        return name

    def video_ids(self) -> set[str]:
        """Return all that can be searched, are on their way, or failed."""
        built = set(self.clips.built.video_ids()) - set(self.added.removed())
        return built | {*self.stages, *self.added.ids("videos"), *self.added.ids("incoming")}

    def fault(self, video_id: str) -> Fault | None:
        """Return why a video did not come in, None where it did or there is none."""
        if self._exists(video_id) or not self.added.has(video_id, "incoming"):
            return None
        return self.added.read(video_id, "incoming").fault

    async def delete(self, video_id: str) -> None:
        """Take a video out of the searches that begin from now on; the data build keeps its own.

        Raises:
            ApiError: 409 `video_on_its_way` or `too_few_videos`, 404 `unknown_video`.
        """
        if video_id in self.stages:
            raise ApiError("video_on_its_way", f"video {video_id!r} is {self.stages[video_id]}; wait until it is ready")
        async with self._deleting:
            if self.fault(video_id):
                self.added.delete(video_id)
                return
            if not self._exists(video_id):
                raise ApiError("unknown_video", f"the corpus has no video {video_id!r}")
            now = await self.actors.retrieval.describe.remote()
            if now["videos"] <= (least := max(2, now["shards"])):
                raise ApiError("too_few_videos", f"a corpus needs {least} videos; add others before this one goes")
            if video_id in self.clips.built:
                self.added.remove(video_id)
            self.added.delete(video_id)
            self._ids = {digest: name for digest, name in self._ids.items() if name != video_id}
            await self.actors.retrieval.refresh.remote()
        limit_s = self._settings.request_limit_s  # by then, no search that found it is running
        asyncio.get_running_loop().call_later(limit_s, self.added.purge, video_id)

    def _exists(self, video_id: str) -> bool:
        is_built = video_id in self.clips.built and video_id not in self.added.removed()
        return is_built or video_id in self.stages or self.added.has(video_id)

    async def _work(self) -> None:
        while True:
            video = self.added.read(await self._queue.get(), "incoming")
            try:
                await self._ingest(video)
            except ApiError as error:
                self._failed(video, Fault(code=error.code, message=str(error)))
            except (RetrievalError, RayActorError, ObjectLostError, OSError) as error:
                self._failed(video, Fault(code="ingestion_failed", message=reason(error)))
            except Exception:  # a fault of ours: it ends the work, and Serve starts a new library, without this video
                self._failed(video, Fault(code="internal_error", message="the server has a fault; its log has it"))
                raise
            finally:
                del self.stages[video.video_id]

    async def _ingest(self, video: AddedVideo) -> None:
        name, actors = video.video_id, self.actors
        folder = self.added.incoming(name)
        self.stages[name] = "decoding"
        await sandbox.decode(folder, name, self._data, self._limits)
        self.stages[name] = "embedding"
        clip = await asyncio.to_thread(ClipFolder(folder, self._data.timestamps).read, name)
        vector, embedder = await actors.retrieval.embed_clip.remote(clip)
        self.stages[name] = "indexing"
        self.added.finish(video.model_copy(update={"embedder": embedder}), vector)
        for store in actors.stores.actors():
            await store.forget.remote(name)
        await actors.retrieval.refresh.remote()

    def _failed(self, video: AddedVideo, fault: Fault) -> None:
        self.added.fail(video, fault)
        del self._ids[video.sha256]


def _built_hashes(corpus: CorpusConfig, removed: set[str]) -> dict[str, str]:
    """Return video ids by the hash of their source, as far as the data build knows it."""
    rows = read_journal(DatasetFolder(corpus.root).clips_journal(corpus.split))
    return {row["source"][2]: name for name, row in rows.items() if row["source"] and name not in removed}
