"""The gateway: HTTP in, events out. Every error has a code for programs and a message for people."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from fastapi import Depends, FastAPI, Request
from fastapi.responses import Response, StreamingResponse
from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError

from pipelines.serve.gateway import chat, metrics, resume
from pipelines.serve.gateway.faults import ADMITTED, ALWAYS, OF_SEARCH, errors, handle_faults, json_only
from pipelines.serve.gateway.guard import Cors, Guard
from pipelines.serve.gateway.intake import Intake
from pipelines.serve.gateway.keys import ApiKey, Limiter, known, read_keys, secret_of
from pipelines.serve.gateway.runs import SearchRun, SearchRuns
from pipelines.serve.gateway.schema import Corpus, Health, SearchAnswer, SearchBody
from pipelines.serve.gateway.stream import ApiError, Event, server_sent
from pipelines.serve.gateway.videos import router as videos
from pipelines.serve.running import running_agents
from vsr1.episode.environment import PromptError
from vsr1.retrieval.request import SearchTimeoutError, UnknownVideoError
from vsr1.settings.serving import ServeConfig

app = FastAPI(title="vsr1", description="Search a corpus of videos for one moment.", docs_url="/docs", redoc_url=None)
handle_faults(app)
for middleware in (Guard, Cors, metrics.Counted):  # the last is the outermost
    app.add_middleware(middleware)
for router in (resume.router, chat.router, metrics.router, videos):
    app.include_router(router)
PAGE = {path.name: path.read_bytes() for path in (Path(__file__).parent / "page").iterdir()}
PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src blob:; media-src 'self' blob:; "
        "connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
}
SEARCH_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "the answer, or with `stream` its events", "content": {"text/event-stream": {}}},
    **errors(*OF_SEARCH, "query_too_long", also={"unknown_video": 422}),
}


@serve.deployment(name="gateway", max_ongoing_requests=1024)
@serve.ingress(app)
class Gateway:
    """`agents`, by model, and `library` are the handles of the other deployments.

    There is one gateway: it counts what waits for the agents and what each key has running.
    """

    def __init__(self, config: ServeConfig, agents: dict[str, Any], library: Any) -> None:
        self.settings, self.library, self.intake = config, library, Intake(config, library)
        self._agents = {name: handle.options(stream=True) for name, handle in agents.items()}
        self.models = list(agents)  # that a request may name; the first is the default
        self._keys = read_keys(config.key_file) if config.key_file else None
        self._limiter = Limiter()
        self.runs = SearchRuns(config)
        self._searching, self._stopping = 0, False

    async def drain(self) -> None:
        """Take no new searches, and return when those that were let in are over."""
        self._stopping = True
        while self._searching:
            await asyncio.sleep(0.1)

    @app.post("/v1/search", response_model=SearchAnswer, responses=SEARCH_ANSWERS, dependencies=[Depends(json_only)])
    async def search(self, body: SearchBody, request: Request) -> Any:
        """Find one moment. With `stream` the answer is server-sent events: turn.started, retrieved, reasoning.delta,
        verdict, refined, moment, and at the end `done` with the whole answer, or `error`. The header X-Search-Id names
        the search to `GET /v1/search/{search_id}/events`."""
        run = await self.begin(body, request, resumable=body.stream)
        if body.stream:
            headers = {"Cache-Control": "no-store", "X-Search-Id": run.id}
            return StreamingResponse(server_sent(run.read()), media_type="text/event-stream", headers=headers)
        return await run.result()

    async def begin(self, body: SearchBody, request: Request, resumable: bool = False) -> SearchRun:
        """Start a search and wait for its first event: what is refused has a status, streamed or not.

        Args:
            resumable: it goes on for `serve.resume_grace_s` without a reader.

        Raises:
            ApiError: it was refused.
        """
        key, search_id = self.key_of(request), uuid4().hex
        events = self._events(search_id, body, key)
        return await self.runs.begin(search_id, key.name if key else None, events, resumable)

    @app.get("/v1/corpora", responses=errors(*ADMITTED))
    async def corpora(self, request: Request) -> list[Corpus]:
        with self.admitted(request):
            found, examples = await self.library.describe.remote(), await self.library.examples.remote()
        return [
            Corpus(name=n, videos=row["videos"], index_version=row["index_version"], examples=examples[n])
            for n, row in found.items()
        ]

    @app.get("/", include_in_schema=False)
    async def page(self) -> Response:
        return Response(PAGE["index.html"], media_type="text/html", headers=PAGE_HEADERS)

    @app.get("/page.{part}", include_in_schema=False)
    async def page_part(self, part: Literal["css", "js", "parts.js", "player.js", "library.js"]) -> Response:
        kind = "text/css" if part == "css" else "text/javascript"
        return Response(PAGE[f"page.{part}"], media_type=kind, headers={"Cache-Control": "no-cache"})

    @app.get("/healthz", responses=errors(*ALWAYS))
    async def healthz(self) -> Health:
        """The gateway is there."""
        return Health(status="ok")

    @app.get("/readyz", responses=errors("not_ready", *ALWAYS))
    async def readyz(self) -> Health:
        """The corpora can be searched, and every model has an agent."""
        agents = await asyncio.to_thread(running_agents, serve.get_replica_context().app_name)
        if missing := [name for name in self._agents if not agents.get(name)]:
            raise ApiError(503, "not_ready", f"no agent runs of {', '.join(missing)}; wait for it", retry_after_s=5)
        return Health(status="ok", detail=await self.library.describe.remote(), models=agents)

    def key_of(self, request: Request) -> ApiKey | None:
        """The key of a request, None where there is no file of keys.

        Raises:
            ApiError: it has none that is known.
        """
        if self._keys is None:
            return None
        if key := known(self._keys, secret_of(request.headers)):
            return key
        raise ApiError(401, "unknown_key", "send a valid API key: `Authorization: Bearer KEY` or `X-API-Key: KEY`")

    @contextmanager
    def within_limits(self, key: ApiKey | None, holds: bool = True) -> Iterator[None]:
        """Around what a key asked for. Raises ApiError at its limits.

        Args:
            holds: it counts among what the key runs at one time.
        """
        if key is None:
            yield
            return
        if wait := self._limiter.begin(key, time.monotonic(), holds):
            raise ApiError(429, "rate_limited", f"the limits of key {key.name!r} are reached", retry_after_s=wait)
        try:
            yield
        finally:
            if holds:
                self._limiter.end(key)

    def admitted(self, request: Request) -> AbstractContextManager[None]:
        """Around a request: let in by its key's limits, everybody without a file of keys."""
        return self.within_limits(self.key_of(request))

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Around a search, for `drain`."""
        if self._stopping:
            raise ApiError(503, "stopping", "this server is being stopped; ask again in a minute", retry_after_s=60)
        self._searching += 1
        try:
            yield
        finally:
            self._searching -= 1

    async def _events(self, search_id: str, body: SearchBody, key: ApiKey | None) -> AsyncGenerator[Event, None]:
        with self.within_limits(key), self._counted():
            agents = self._agents[self._model(body.model)]
            stream = agents.search.remote(search_id, body, self.corpus(body.corpus))
            try:
                async for event in stream:
                    yield event
                raise ApiError(503, "agent_failed", "the agent ended without an answer; try again")
            except BackPressureError:
                raise ApiError(429, "busy", "this server runs as many searches as it takes; try again", 2) from None
            except UnknownVideoError as error:
                raise ApiError(422, "unknown_video", str(getattr(error, "cause", error))) from error
            except PromptError as error:
                raise ApiError(
                    422, "query_too_long", f"ask in fewer words: {getattr(error, 'cause', error)}"
                ) from error
            except SearchTimeoutError as error:
                raise ApiError(503, "search_timeout", str(getattr(error, "cause", error))) from error
            except (RayActorError, RayTaskError) as error:
                raise ApiError(503, "agent_failed", f"the search broke off ({type(error).__name__})") from error
            except (asyncio.CancelledError, GeneratorExit):  # of a refused one, `cancel` raises the refusal again
                stream.cancel()
                raise

    def _model(self, name: str | None) -> str:
        if name not in (None, *self.models):
            raise ApiError(404, "unknown_model", f"model {name!r} is not served; there are {', '.join(self.models)}")
        return name or self.models[0]

    def corpus(self, name: str | None) -> str:
        """The corpus of a request, which may leave it out where there is only one; raises `ApiError` 404."""
        names = list(self.settings.corpora)
        if name is None and len(names) == 1:
            return names[0]
        if name not in names:
            raise ApiError(404, "unknown_corpus", f"corpus {name!r} is not served; there are {', '.join(names)}")
        return str(name)
