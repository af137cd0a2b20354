"""The gateway: who is let in, which agent plays a search, and what becomes of it when a part fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Annotated, Any
from uuid import uuid4

from fastapi import Depends, Request
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError

from pipelines.serve.gateway import metrics
from pipelines.serve.gateway.events import Event
from pipelines.serve.gateway.faults import ApiError, reason
from pipelines.serve.gateway.handles import LibraryHandle
from pipelines.serve.gateway.intake import Intake
from pipelines.serve.gateway.keys import NOBODY_S, ApiKey, Limiter, key_of, read_keys, secret_of
from pipelines.serve.gateway.runs import SearchRun, SearchRuns
from pipelines.serve.gateway.schema import AskBody, CorpusName, SearchBody
from pipelines.serve.gateway.words import PromptWords
from vsr1.episode.environment import PromptError
from vsr1.retrieval.request import SearchTimeoutError, UnknownVideoError
from vsr1.settings.serving import ServeConfig

LAST_BYTES_S = 5.0  # for readers of answers that are there
HANDED_ON_S = 1.0  # what has left the gateway is then with the client, or lost


class Gateway:
    """What the routes share. There is one gateway: it counts what waits for the agents and what each key has running.

    Args:
        agents: by model the handle of its `AgentReplica`; the first is the default. With none, it only retrieves.
        words: by model its prompt.
        asks: the agents answer questions about one film, and search nothing.
    """

    def __init__(
        self,
        settings: ServeConfig,
        agents: dict[str, Any],
        library: LibraryHandle,
        words: Mapping[str, PromptWords] = MappingProxyType({}),
        asks: bool = False,
    ) -> None:
        self.asks = asks
        self.settings, self.library, self.intake = settings, library, Intake(settings, library)
        self._agents = {name: handle.options(stream=True) for name, handle in agents.items()}
        self._words, self.models = words, list(agents)  # that a request may name
        self._keys = read_keys(settings.key_file) if settings.key_file else None
        self.limiter = Limiter()
        self._runs = SearchRuns(settings)

    @property
    def is_stopping(self) -> bool:
        """Return whether what is new is refused."""
        return self._runs.is_stopping

    async def drain(self) -> None:
        """Take no new searches and uploads, and return when those that were let in are over and answered."""
        await self._runs.drain()
        while self.intake.receiving:
            await asyncio.sleep(0.1)
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_BYTES_S):
                while metrics.open_requests():
                    await asyncio.sleep(0.1)
        await asyncio.sleep(HANDED_ON_S)

    async def begin(self, body: SearchBody | AskBody, request: Request, resumable: bool = False) -> SearchRun:
        """Start a search of this request's key, see `SearchRuns.begin`: what is refused has a status, streamed or not.

        Raises:
            ApiError: it was refused.
        """
        key, search_id = self.key_of(request), uuid4().hex
        words = self._words.get(body.model or self.models[0])
        if words and isinstance(body, SearchBody):
            await asyncio.to_thread(words.check, body.query)
        return await self._runs.begin(search_id, key.name, self._events(search_id, body, key), resumable)

    def run(self, search_id: str, request: Request) -> SearchRun:
        """Return a search of this request's key. Reading it counts as a request, but not among those that run.

        Raises:
            ApiError: the key has no such search.
        """
        key = self.key_of(request)
        with self.limiter.within(key, views=True):
            return self._runs.get(search_id, key.name)

    def key_of(self, request: Request) -> ApiKey:
        """Return the key of a request, `NOBODY_S` where there is no file of keys.

        Raises:
            ApiError: it has none that is known.
        """
        if self._keys is None:
            return NOBODY_S
        if key := key_of(self._keys, secret_of(request.headers)):
            return key
        raise ApiError("unknown_key")

    def corpus(self, name: str | None) -> str:
        """Return the corpus of a request, which may leave it out where there is only one.

        Raises:
            ApiError: 404 `unknown_corpus`.
        """
        names = list(self.settings.corpora)
        if name is None and len(names) == 1:
            return names[0]
        if name not in names:
            raise ApiError("unknown_corpus", f"corpus {name!r} is not served; there are {', '.join(names)}")
        return str(name)

    async def _events(self, search_id: str, body: SearchBody | AskBody, key: ApiKey) -> AsyncGenerator[Event, None]:
        with self.limiter.within(key):
            model = body.model or self.models[0]
            if model not in self.models:
                raise ApiError("unknown_model", f"model {model!r} is not served; there are {', '.join(self.models)}")
            stream = self._agents[model].search.remote(search_id, body, self.corpus(body.corpus))
            try:
                async for event in stream:
                    yield event
                raise ApiError("agent_failed", "the agent ended without an answer; try again")
            except BackPressureError:
                raise ApiError("busy", retry_after_s=2) from None
            except UnknownVideoError as error:
                raise ApiError("unknown_video", reason(error), status=422) from error
            except PromptError as error:
                raise ApiError("query_too_long", f"ask in fewer words: {reason(error)}") from error
            except SearchTimeoutError as error:
                raise ApiError("search_timeout", reason(error)) from error
            except (RayActorError, RayTaskError) as error:
                raise ApiError("agent_failed", f"the search broke off ({type(error).__name__})") from error
            except (asyncio.CancelledError, GeneratorExit):  # of a refused one, `cancel` raises the refusal again
                stream.cancel()
                raise


async def gateway_of(request: Request) -> Gateway:
    """Return the gateway whose application answers."""
    gateway: Gateway = request.app.state.gateway
    return gateway


Served = Annotated[Gateway, Depends(gateway_of)]


async def admit(request: Request, gateway: Served) -> AsyncIterator[Gateway]:
    """Give the gateway, and count the request among those of its key until it is answered."""
    views = request.method in ("GET", "HEAD")
    with gateway.limiter.within(gateway.key_of(request), views=views):
        if gateway.is_stopping and not views:
            raise ApiError("stopping", retry_after_s=60)
        yield gateway


Admitted = Annotated[Gateway, Depends(admit)]


async def choose(gateway: Admitted, corpus: CorpusName = None) -> str:
    """Return the corpus that a request names, or the only one."""
    return gateway.corpus(corpus)


Chosen = Annotated[str, Depends(choose)]
