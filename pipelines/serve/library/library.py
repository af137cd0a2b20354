"""The library: the corpora that are served, each with its retrieval service, its clips and what is added to it."""

from __future__ import annotations

import asyncio
import heapq
import io
import json
import mimetypes
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import ray
from PIL import Image
from ray import serve

from actors.clips import ClipReader, ClipStoreHandle
from actors.corpus import CorpusActors, start_retrieval
from actors.retrieval import RetrievalHandle
from actors.tools import FilmActors, FilmClips, ToolRouterHandle, films_of, start_tools
from pipelines.data.manifest import VIDEO_EXTENSIONS
from pipelines.serve.gateway.faults import ApiError
from pipelines.serve.gateway.schema import Problem, Video, VideoPage
from pipelines.serve.library import sandbox
from pipelines.serve.library.ingest import PROGRESS, Ingestion
from vsr1.config import Config
from vsr1.environments.registry import environment_of
from vsr1.formats.annotations import AnnotationError
from vsr1.formats.dataset import DatasetFolder
from vsr1.formats.digest import value_sha256
from vsr1.formats.rows import json_rows
from vsr1.navigate.files import Question, questions_file, read_questions
from vsr1.navigate.tree import ClipTree
from vsr1.navigate.video_films import tree_of
from vsr1.retrieval.added import SOURCE, AddedFolder, LibraryClips
from vsr1.retrieval.request import SearchRequest, SearchResult, UnknownVideoError
from vsr1.settings.serving import CorpusConfig
from vsr1.storage import fetched
from vsr1.video.clips import ClipFolder, ClipMeta, player_offset

CUTS_AT_ONCE = 2
EXAMPLES = 3  # queries that the page offers
ALWAYS = -1  # Ray starts an actor that dies again; the agents keep their handles


class LibraryReplica:
    """Owns the actors of every corpus; there is one."""

    async def __init__(self, config: Config) -> None:  # type: ignore[misc]  # Serve awaits it
        self._serve, data, corpora = config.serve, config.data, config.serve.corpora
        self._cutting = asyncio.Semaphore(CUTS_AT_ONCE)
        self._ingestion: dict[str, Ingestion] = {}
        self._tools: dict[str, ToolRouterHandle] = {}
        for name, corpus in corpora.items():
            added, built = AddedFolder.of(corpus), DatasetFolder(corpus.root).clips(corpus.split)
            clips, own = LibraryClips(ClipFolder(built, data.timestamps), added), _config_of(corpus, config)
            reader: ClipReader = clips
            if environment_of(config).has_films:
                films = films_of(own, corpus.split, LibraryVideos(corpus.root, clips, added))
                self._tools[name], reader = start_tools(own, films, None), FilmClips(clips, films)
            actors = CorpusActors(own, corpus.split, reader, sharers=len(corpora), restarts=ALWAYS, added=added)
            self._ingestion[name] = Ingestion(config.serve, corpus, data, clips, actors)
        self._retrieval = {name: ingestion.actors.retrieval for name, ingestion in self._ingestion.items()}

    async def check_health(self) -> None:
        """Raise what ended a part, so that Serve replaces this replica."""
        for ingestion in self._ingestion.values():
            ingestion.check_health()
        for service in self._retrieval.values():
            await service.ready.remote()

    async def describe(self) -> dict[str, dict[str, Any]]:
        """Return of each corpus what `RetrievalServiceActor.describe` says."""
        return {name: await service.describe.remote() for name, service in self._retrieval.items()}

    async def retrieve(self, corpus: str, requests: list[SearchRequest]) -> list[SearchResult]:
        """Search without an agent; raise as `RetrievalServiceActor.search_all`."""
        return await self._retrieval[corpus].search_all.remote(requests)

    async def parts(self, node: str) -> dict[str, tuple[RetrievalHandle, ClipStoreHandle]]:
        """Return of each corpus its retrieval service, and its clip store on a node."""
        return {name: (one.actors.retrieval, one.actors.stores.on(node)) for name, one in self._ingestion.items()}

    async def tools(self) -> dict[str, ToolRouterHandle]:
        """Return of each corpus the router of the tools that navigate its long videos; none where nothing navigates."""
        return self._tools

    async def examples(self) -> dict[str, list[str]]:
        """Return of each corpus the first queries of its annotations; videos alone have none."""
        return {
            name: _first_queries(DatasetFolder(c.root).annotations(c.split)) for name, c in self._serve.corpora.items()
        }

    async def accept(self, corpus: str, video_id: str | None, received: str, sha256: str) -> str:
        """Begin to bring in a video, see `Ingestion.accept`."""
        return await self._ingestion[corpus].accept(video_id, Path(received), sha256)

    async def delete(self, corpus: str, video_id: str) -> None:
        """Take a video out, see `Ingestion.delete`."""
        await self._ingestion[corpus].delete(video_id)

    async def video(self, corpus: str, video_id: str) -> Video:
        """Return how far a video is.

        Raises:
            ClipError: the corpus has none of this id.
        """
        video = self._state(corpus, video_id)
        if video.status == "ready":
            row, video.version = await self._row(corpus, video_id)
            video.duration = row["source_duration_sec"]
            video.first_picture_sec = player_offset(row)
        return video

    async def videos(self, corpus: str, after: str, limit: int) -> VideoPage:
        """Return at most `limit` videos whose ids come after one."""
        ids = await asyncio.to_thread(self._ingestion[corpus].video_ids)
        first = heapq.nsmallest(limit + 1, (video_id for video_id in ids if video_id > after))
        shown = [self._state(corpus, video_id) for video_id in first[:limit]]
        return VideoPage(videos=shown, next=first[limit - 1] if len(first) > limit else None)

    async def thumbnail(self, corpus: str, video_id: str, seconds: float) -> tuple[bytes, str]:
        """Return the frame nearest to a time, as JPEG, and the video's version. Raise as `video` does."""
        _, version = await self._row(corpus, video_id)
        clip = await asyncio.to_thread(lambda: self._ingestion[corpus].clips.known(video_id).read(video_id))
        picture = io.BytesIO()
        Image.fromarray(clip.frames[int(np.abs(clip.timestamps - seconds).argmin())]).save(picture, "JPEG", quality=85)
        return picture.getvalue(), version

    async def source(self, corpus: str, video_id: str) -> tuple[str, str, str]:
        """Return path and media type of the source file, and the video's version.

        Raises:
            ClipError: as `video`.
            ApiError: 404 `no_source`, where it is not at the place that the data build wrote down.
        """
        added = self._ingestion[corpus].added
        row, version = await self._row(corpus, video_id)
        if added.has(video_id):
            return str(added.video(video_id) / SOURCE), added.read(video_id).media_type, version
        place = fetched(self._serve.corpora[corpus].root / row["source_video_path"])
        if place.suffix.lower() not in VIDEO_EXTENSIONS or not place.is_file():
            raise ApiError(
                "no_source",
                f"the source file of video {video_id!r} is not where the data build read it; put it back, or delete "
                "the video and add its file",
            )
        return str(place), mimetypes.guess_type(place.name)[0] or "application/octet-stream", version

    async def clip(self, corpus: str, video_id: str, start: float, end: float) -> tuple[bytes, str]:
        """Return the pictures of a part of a video, in seconds, as MP4, and the video's version.

        Raises:
            ClipError: as `video`.
            ApiError: 422 `invalid_range` or a code of the sandbox, 404 as `source`.
        """
        row, version = await self._row(corpus, video_id)
        length, most = row["source_duration_sec"], self._serve.longest_clip_s
        if not start < end <= length or end - start > most:
            raise ApiError(
                "invalid_range",
                f"from {start:g} to {end:g} s: start must be before end, end within the video's {length:.3f} s, and "
                f"the part no longer than serve.longest_clip_s={most:g}",
            )
        source, *_ = await self.source(corpus, video_id)
        async with self._cutting:
            with tempfile.TemporaryDirectory() as folder:
                target = Path(folder) / "clip.mp4"
                await sandbox.cut(Path(source), target, (start, end), self._serve.upload)
                return await asyncio.to_thread(target.read_bytes), version

    def _state(self, corpus: str, video_id: str) -> Video:
        """Return a video without its length; an id that nobody knows counts as ready."""
        ingestion = self._ingestion[corpus]
        if stage := ingestion.stages.get(video_id):
            return Video(video_id=video_id, status=stage, progress=PROGRESS[stage])
        if fault := ingestion.fault(video_id):
            return Video(video_id=video_id, status="failed", progress=0, error=Problem(**fault.model_dump()))
        return Video(video_id=video_id, status="ready", progress=1)

    async def _row(self, corpus: str, video_id: str) -> tuple[ClipMeta, str]:
        """Return what `meta.jsonl` says of a video, and its version. Raise as `video` does."""
        clips = self._ingestion[corpus].clips
        row = await asyncio.to_thread(lambda: clips.known(video_id).row(video_id))
        return row, value_sha256(row)[:16]


@dataclass(frozen=True)
class LibraryVideos(Mapping[str, tuple[Path, ClipTree]]):
    """File and tree of each video of a corpus, those that were added too, looked up when somebody asks."""

    root: Path
    clips: LibraryClips
    added: AddedFolder

    def __getitem__(self, video_id: str) -> tuple[Path, ClipTree]:
        row = self.clips.known(video_id).row(video_id)
        is_added = self.added.has(video_id)
        return self.added.video(video_id) / SOURCE if is_added else self.root / row["source_video_path"], tree_of(row)

    def __iter__(self) -> Iterator[str]:
        raise TypeError("the videos of a library are looked up, not listed")

    def __len__(self) -> int:
        raise TypeError("the videos of a library are looked up, not counted")


class FilmLibraryReplica(LibraryReplica):
    """A library of long films that questions are asked about, those of a split's questions; nothing searches them."""

    async def __init__(self, config: Config) -> None:  # type: ignore[misc]  # Serve awaits it
        self._serve, self._actors, self._films = config.serve, dict[str, FilmActors](), dict[str, dict[str, Question]]()
        for name, corpus in config.serve.corpora.items():
            questions = read_questions(questions_file(DatasetFolder(corpus.root), corpus.split))
            self._films[name] = {question.film: question for question in reversed(questions)}
            own, logs = _config_of(corpus, config), config.run_dir / "logs" / name
            self._actors[name] = FilmActors(own, corpus.split, sharers=len(config.serve.corpora), logs=logs)
        self._tools = {name: actors.retrieval for name, actors in self._actors.items()}

    async def check_health(self) -> None:
        """Raise what ended a router, so that Serve replaces this replica."""
        for router in self._tools.values():
            await router.costs.remote()

    async def describe(self) -> dict[str, dict[str, Any]]:
        """Return of each corpus how many films it has."""
        return {name: {"videos": len(films), "index_version": ""} for name, films in self._films.items()}

    async def examples(self) -> dict[str, list[str]]:
        """Return of each corpus the first questions."""
        return {
            name: [f"{film}: {question.question}" for film, question in sorted(films.items())[:EXAMPLES]]
            for name, films in self._films.items()
        }

    async def parts(self, node: str) -> dict[str, tuple[Any, ClipStoreHandle]]:
        """Return of each corpus the router of its tools, and its clip store on a node."""
        return {name: (actors.retrieval, actors.stores.on(node)) for name, actors in self._actors.items()}

    async def videos(self, corpus: str, after: str, limit: int) -> VideoPage:
        """Return at most `limit` films whose ids come after one."""
        names = heapq.nsmallest(limit + 1, (film for film in self._films[corpus] if film > after))
        lengths = {name: self._films[corpus][name].seconds for name in names[:limit]}
        shown = [Video(video_id=name, status="ready", progress=1, duration=length) for name, length in lengths.items()]
        return VideoPage(videos=shown, next=names[limit - 1] if len(names) > limit else None)

    async def film(self, corpus: str, film: str) -> Question:
        """Return a question about a film, which says its length and scenes.

        Raises:
            UnknownVideoError: there is none.
        """
        if film not in self._films[corpus]:
            raise UnknownVideoError(f"corpus {corpus!r} has no film {film!r}; GET /v1/films lists them")
        return self._films[corpus][film]


class RetrievalReplica(LibraryReplica):
    """A library that can be described and retrieved from, of corpora that need no clips."""

    async def __init__(self, config: Config) -> None:  # type: ignore[misc]  # Serve awaits it
        self._ingestion = {}
        self._retrieval = {
            name: start_retrieval(_config_of(corpus, config), corpus.split, restarts=ALWAYS)
            for name, corpus in config.serve.corpora.items()
        }


_ONE: dict[str, Any] = {"name": "library", "num_replicas": 1, "max_ongoing_requests": 64}
Library: Any = serve.deployment(LibraryReplica, **_ONE)
FilmLibrary: Any = serve.deployment(FilmLibraryReplica, **_ONE)
Retrieval: Any = serve.deployment(RetrievalReplica, **_ONE)


def node_id() -> str:
    """Return the id of the Ray node that this process is on."""
    return str(ray.get_runtime_context().get_node_id())


def _config_of(corpus: CorpusConfig, config: Config) -> Config:
    """Return the configuration of one corpus; a search keeps its version of the index to its end."""
    data = config.data.model_copy(update={"root": corpus.root})
    retrieval = config.retrieval.model_copy(update={"keep_s": config.serve.request_limit_s})
    return config.model_copy(update={"data": data, "retrieval": retrieval})


@cache
def _first_queries(annotations: Path) -> list[str]:
    """Return the first queries of a file of annotations, which may be in any form that a build takes; read once."""
    if not annotations.is_file():
        return []
    return [json.loads(text)["fig_desc"] for _, text in islice(json_rows(annotations, AnnotationError), EXAMPLES)]
