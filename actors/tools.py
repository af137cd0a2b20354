"""The tool plane of navigation: one router that every episode of a run asks, and the pools behind it.

`vsr1.navigate.plane` decides; the actors here carry its calls. The pools scale apart: who describes nodes, and who
answers questions about them. A member that keeps a call longer than the deadline is started again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import ray

from actors.clips import ClipReader, ClipStores
from actors.corpus import CLIP_BUDGET_SHARE
from actors.handles import Remote, answer_of, unordered
from actors.logs import log_to
from actors.places import resources
from vsr1.config import Config
from vsr1.environments.registry import environment_of
from vsr1.formats.dataset import DatasetFolder
from vsr1.navigate.calls import ToolCall, ToolError, ToolResult, is_node_clip
from vsr1.navigate.files import questions_file, read_questions
from vsr1.navigate.plane import Films, Member, ToolPlane
from vsr1.navigate.tree import ClipTree
from vsr1.navigate.video_films import VideoFilms
from vsr1.settings.navigate import ToolName, ToolsConfig
from vsr1.toy.long_corpus import LongFilms

PAUSE_S = 0.2  # between two looks whether an actor is back
EPISODES = 4096  # calls that wait at one time at the router


class CaptionerActor:
    """Describes nodes, or answers questions about them: calls are independent, and go on at one time."""

    def __init__(self, films: Films, log: Path | None = None) -> None:
        log_to(log)
        self._films = films

    @ray.method(concurrency_group="start")  # a call that hangs must not hold it up
    def ready(self) -> None:
        """Return once the captioner can be asked."""
        self._films.start()

    def answer(self, call: ToolCall) -> ToolResult:
        """Return what the films' captioner says."""
        return self._films.answer(call)


class ToolRouterActor:
    """Answers the calls of all episodes over the films of one split; see `ToolPlane`.

    Args:
        cache: folder for captions and answers, the same for every run over a dataset.
        gpus: of each actor of the pools.
    """

    def __init__(
        self,
        films: Films,
        config: ToolsConfig,
        cache: Path | None,
        log: Path | None = None,
        gpus: int = 0,
        find_level: int = 2,
    ) -> None:
        log_to(log)
        sizes: dict[ToolName, int] = {"caption": config.captioners, "video_qa": config.answerers}
        pools = {
            tool: [_member(films, config, log and log.with_stem(f"{log.stem}-{tool}-{i}"), gpus) for i in range(size)]
            for tool, size in sizes.items()
        }
        self._plane = ToolPlane(films, pools, config.deadline_s, cache, find_level)

    async def use(self, call: ToolCall) -> ToolResult:
        """Answer a call; errors as of `ToolPlane.use`."""
        return await self._plane.use(call)

    async def costs(self) -> dict[str, dict[str, float]]:
        """Return by tool what its calls came to so far."""
        return {tool: asdict(costs) for tool, costs in self._plane.costs.items()}


def _member(films: Films, config: ToolsConfig, log: Path | None, gpus: int) -> Member:
    """Start an actor of a pool."""
    options = {"num_cpus": 0, "num_gpus": gpus, "max_concurrency": config.calls, "max_restarts": -1}
    actor = Captioner.options(**options).remote(films, log)

    async def ask(call: ToolCall) -> ToolResult:
        try:
            # Never twice: a call that hung would hang again.
            result: ToolResult = await answer_of(actor.answer.remote(call))
        except ray.exceptions.RayActorError as error:
            raise ToolError(f"{call.tool} of film {call.film!r}: its actor died, and starts again") from error
        return result

    async def ready() -> None:
        while True:
            try:
                return await answer_of(actor.ready.remote())
            except ray.exceptions.RayActorError:  # Ray starts it again; `START_S` ends the wait
                await asyncio.sleep(PAUSE_S)

    return Member(ask, partial(ray.kill, actor, no_restart=False), ready)


def films_of(config: Config, split: str, videos: Mapping[str, tuple[Path, ClipTree]] | None = None) -> Films:
    """Return the films of a split with who describes them, as `navigate.pools.captioner` says.

    Args:
        videos: file and tree of each real film; None: those of the split's questions, or clips.

    Raises:
        FileNotFoundError: no questions, or no films of the toy world.
        NavigateFileError: questions that cannot be used, or a film without a file.
    """
    folder, pools = DatasetFolder(config.data.root), config.navigate.pools
    if pools.captioner.kind == "toy":
        return LongFilms.of_split(folder, split, pools.frames)
    shown = pools, config.data.max_pixels, config.model.device
    if videos is not None:
        return VideoFilms(videos, pools.captioner, pools.frames, *shown[1:])
    if environment_of(config).has_corpus:
        return VideoFilms.of_clips(folder, split, *shown)
    place = config.data.videos or folder.raw_videos(split)
    questions = read_questions(questions_file(folder, split))
    return VideoFilms.of_questions(questions, place, *shown)


def start_tools(config: Config, films: Films, log: Path | None) -> ToolRouterHandle:
    """Start the router of the tools over some films, with its pools, which end with it."""
    pools = config.navigate.pools
    gpus = pools.gpus(config.model.device)
    router: ToolRouterHandle = ToolRouter.options(max_restarts=-1).remote(
        films, pools, config.data.root / "navigate" / "answers", log, gpus, config.navigate.find_level
    )
    return router


@dataclass(frozen=True)
class FilmClips:
    """Reads the clips of a corpus and those of nodes of its films, which look has named."""

    clips: ClipReader
    films: ClipReader

    def read(self, video_id: str) -> Any:
        """Return the clip of a video, or of a node as `vsr1.navigate.calls.node_clip` names it."""
        return self.films.read(video_id) if is_node_clip(video_id) else self.clips.read(video_id)


class FilmActors:
    """The films of one split as actors: the router of their tools, and the clip stores that show their nodes.

    In the place of `actors.corpus.CorpusActors` where a stage navigates and does not search.
    """

    def __init__(self, config: Config, split: str, *, sharers: int, logs: Path) -> None:
        """
        Args:
            sharers: splits that divide the clips' share of the object store.
        """
        need, films = config.cluster, films_of(config, split)
        self.retrieval = start_tools(config, films, logs / f"tools-{split}.log")
        budget = int(need.object_store_gib * 2**30 * CLIP_BUDGET_SHARE / sharers)
        options = resources(need.clips) | {"max_restarts": -1}
        self.stores = ClipStores(films, budget, options, logs / f"clips-{split}.log")

    def ready(self) -> Awaitable[object]:
        """Return what to wait for, by `await` or `ray.get`: the router answers then."""
        return self.retrieval.costs.remote()

    def stop(self) -> None:
        """End all its actors; the pools end with the router."""
        for actor in [self.retrieval, *self.stores.actors()]:
            ray.kill(actor)


class ToolRouterHandle(Protocol):
    """What a handle of a `ToolRouterActor` offers."""

    use: Remote[[ToolCall], ToolResult]
    costs: Remote[[], dict[str, dict[str, float]]]


Captioner: Any = unordered(CaptionerActor, concurrency_groups={"start": 1})
ToolRouter: Any = unordered(ToolRouterActor, max_concurrency=EPISODES, num_cpus=0)
