"""The tool plane of navigation: one router that every episode of a run asks, and the pools behind it.

`vsr1.navigate.plane` decides; the actors here carry its calls. The pools scale apart: who describes nodes, and who
answers questions about them. A member that keeps a call longer than the deadline is started again.
"""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import ray

from actors.clips import ClipStores
from actors.corpus import CLIP_BUDGET_SHARE
from actors.handles import Remote, answer_of
from actors.logs import log_to
from actors.places import resources
from vsr1.config import Config
from vsr1.formats.dataset import DatasetFolder
from vsr1.navigate.calls import ToolCall, ToolError, ToolResult
from vsr1.navigate.plane import Films, Member, ToolPlane
from vsr1.settings.navigate import ToolName, ToolsConfig
from vsr1.toy.long_corpus import LongFilms

EPISODES = 4096  # calls that wait at one time at the router


class CaptionerActor:
    """Describes nodes, or answers questions about them: calls are independent, and go on at one time."""

    def __init__(self, films: Films, log: Path | None = None) -> None:
        log_to(log)
        self._films = films

    def answer(self, call: ToolCall) -> ToolResult:
        """Return what the films' captioner says."""
        return self._films.answer(call)


class ToolRouterActor:
    """Answers the calls of all episodes over the films of one split; see `ToolPlane`.

    Args:
        cache: folder for captions and answers, the same for every run over a dataset.
    """

    def __init__(self, films: Films, config: ToolsConfig, cache: Path | None, log: Path | None = None) -> None:
        log_to(log)
        sizes: dict[ToolName, int] = {"caption": config.captioners, "video_qa": config.answerers}
        pools = {
            tool: [_member(films, config, log and log.with_stem(f"{log.stem}-{tool}-{i}")) for i in range(size)]
            for tool, size in sizes.items()
        }
        self._plane = ToolPlane(films, pools, config.deadline_s, cache)

    async def use(self, call: ToolCall) -> ToolResult:
        """Answer a call; errors as of `ToolPlane.use`."""
        return await self._plane.use(call)

    async def costs(self) -> dict[str, dict[str, float]]:
        """Return by tool what its calls came to so far."""
        return {tool: asdict(costs) for tool, costs in self._plane.costs.items()}


def _member(films: Films, config: ToolsConfig, log: Path | None) -> Member:
    """Start an actor of a pool."""
    actor = Captioner.options(num_cpus=0, max_concurrency=config.calls, max_restarts=-1).remote(films, log)

    async def ask(call: ToolCall) -> ToolResult:
        try:
            # Never twice: a call that hung would hang again.
            result: ToolResult = await answer_of(actor.answer.remote(call))
        except ray.exceptions.RayActorError as error:
            raise ToolError(f"{call.tool} of film {call.film!r}: its actor died, and starts again") from error
        return result

    return Member(ask, partial(ray.kill, actor, no_restart=False))


class FilmActors:
    """The films of one split as actors: the router of their tools, and the clip stores that show their nodes.

    In the place of `actors.corpus.CorpusActors` where a stage navigates.
    """

    def __init__(self, config: Config, split: str, *, sharers: int, logs: Path) -> None:
        """
        Args:
            sharers: splits that divide the clips' share of the object store.
        """
        folder, need = DatasetFolder(config.data.root), config.cluster
        films = LongFilms.of_split(folder, split, config.navigate.pools.frames)
        self.retrieval: ToolRouterHandle = ToolRouter.options(max_restarts=-1).remote(
            films, config.navigate.pools, folder.root / "navigate" / "answers", logs / f"tools-{split}.log"
        )
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


# Any: the stubs of Ray give a handle no `.remote`.
Captioner: Any = ray.remote(CaptionerActor)
ToolRouter: Any = ray.remote(max_concurrency=EPISODES, num_cpus=0)(ToolRouterActor)
