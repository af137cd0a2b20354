"""The gateway: HTTP in, events out. Every error has a code for programs and a message for people."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import uuid4

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError

from pipelines.service.keys import Limiter, known, read_keys, secret_of
from pipelines.service.running import running_agents
from pipelines.service.schema import Corpus, ErrorAnswer, Health, SearchAnswer, SearchBody, Video
from pipelines.service.stream import ApiError, Event, server_sent
from vsr1.config import ServeConfig
from vsr1.formats.clips import ClipError
from vsr1.retrieval.request import SearchTimeoutError, UnknownVideoError

app = FastAPI(title="vsr1", description="Search a corpus of videos for one moment.", docs_url="/docs", redoc_url=None)
PAGE = {path.name: path.read_bytes() for path in (Path(__file__).parent / "page").iterdir()}
PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src blob:; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": ErrorAnswer} for status in (401, 404, 422, 429, 503)}


@app.exception_handler(ApiError)
async def _api_error(request: Request, error: ApiError) -> Response:
    headers = {"Retry-After": str(error.retry_after_s)} if error.retry_after_s else None
    return JSONResponse(error.body(), error.status, headers=headers)


@app.exception_handler(RequestValidationError)
async def _invalid(request: Request, error: RequestValidationError) -> Response:
    faults = "; ".join(f"{'.'.join(map(str, item['loc'][1:])) or 'body'}: {item['msg']}" for item in error.errors())
    return JSONResponse({"error": {"code": "invalid_request", "message": faults}}, 422)


@serve.deployment(name="gateway", max_ongoing_requests=1024)
@serve.ingress(app)
class Gateway:
    """`agents`, by model, and `library` are the handles of the other deployments.

    There is one gateway: it counts what waits for the agents and what each key has running.
    """

    def __init__(self, config: ServeConfig, agents: dict[str, Any], library: Any) -> None:
        self._config, self._library = config, library
        self._agents = {name: handle.options(stream=True) for name, handle in agents.items()}
        self._keys = read_keys(config.key_file) if config.key_file else None
        self._limiter = Limiter()
        self._searching, self._stopping = 0, False

    async def drain(self) -> None:
        """Take no new searches, and return when those that were let in are over."""
        self._stopping = True
        while self._searching:
            await asyncio.sleep(0.1)

    @app.post("/v1/search", response_model=SearchAnswer, responses=ERRORS)
    async def search(self, body: SearchBody, request: Request) -> Any:
        """Find one moment. With `stream` the answer is server-sent events: turn.started, retrieved, reasoning.delta,
        verdict, refined, moment, and at the end `done` with the whole answer, or `error`."""
        events = self._events(body, request)
        event = await anext(events)  # what is refused has a status, streamed or not
        if body.stream:
            headers = {"Cache-Control": "no-store"}
            return StreamingResponse(server_sent(event, events), media_type="text/event-stream", headers=headers)
        while event["type"] != "done":
            event = await anext(events)
        await events.aclose()
        return event["result"]

    @app.get("/v1/corpora", responses=ERRORS)
    async def corpora(self, request: Request) -> list[Corpus]:
        with self._admitted(request):
            found = await self._library.describe.remote()
        return [Corpus(name=n, videos=row["videos"], index_version=row["index_version"]) for n, row in found.items()]

    @app.get("/v1/videos/{video_id}", responses=ERRORS)
    async def video(self, video_id: str, request: Request, corpus: str | None = None) -> Video:
        with self._admitted(request):
            return Video(video_id=video_id, duration=await self._of_video("video", corpus, video_id))

    @app.get("/v1/videos/{video_id}/thumbnail", response_class=Response, responses=ERRORS)
    async def thumbnail(
        self, video_id: str, request: Request, t: Annotated[float, Query(ge=0)] = 0.0, corpus: str | None = None
    ) -> Response:
        """The frame nearest to second `t`, as JPEG."""
        with self._admitted(request):
            picture = await self._of_video("thumbnail", corpus, video_id, t)
        return Response(picture, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    @app.get("/", include_in_schema=False)
    async def page(self) -> Response:
        return Response(PAGE["index.html"], media_type="text/html", headers=PAGE_HEADERS)

    @app.get("/page.{kind}", include_in_schema=False)
    async def page_part(self, kind: Literal["css", "js"]) -> Response:
        return Response(PAGE[f"page.{kind}"], media_type={"css": "text/css", "js": "text/javascript"}[kind])

    @app.get("/healthz")
    async def healthz(self) -> Health:
        """The gateway is there."""
        return Health(status="ok")

    @app.get("/readyz", responses=ERRORS)
    async def readyz(self) -> Health:
        """The corpora can be searched, and every model has an agent."""
        agents = await asyncio.to_thread(running_agents, serve.get_replica_context().app_name)
        if missing := [name for name in self._agents if not agents.get(name)]:
            raise ApiError(503, "not_ready", f"no agent runs of {', '.join(missing)}; wait for it", retry_after_s=5)
        return Health(status="ok", detail=await self._library.describe.remote(), models=agents)

    @contextmanager
    def _admitted(self, request: Request) -> Iterator[None]:
        """Around a request: let in by its key's limits, everybody without a file of keys."""
        if self._keys is None:
            yield
            return
        key = known(self._keys, secret_of(request.headers))
        if key is None:
            raise ApiError(401, "unknown_key", "send a valid API key: `Authorization: Bearer KEY` or `X-API-Key: KEY`")
        if wait := self._limiter.begin(key, time.monotonic()):
            raise ApiError(429, "rate_limited", f"the limits of key {key.name!r} are reached", retry_after_s=wait)
        try:
            yield
        finally:
            self._limiter.end(key)

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

    async def _events(self, body: SearchBody, request: Request) -> AsyncGenerator[Event, None]:
        with self._admitted(request), self._counted():
            agents = self._agents[self._model(body.model)]
            stream = agents.search.remote(uuid4().hex, body, self._corpus(body.corpus))
            try:
                async for event in stream:
                    yield event
                raise ApiError(503, "agent_failed", "the agent ended without an answer; try again")
            except BackPressureError:
                raise ApiError(429, "busy", "this server runs as many searches as it takes; try again", 2) from None
            except UnknownVideoError as error:
                raise ApiError(422, "unknown_video", str(getattr(error, "cause", error))) from error
            except SearchTimeoutError as error:
                raise ApiError(503, "search_timeout", str(getattr(error, "cause", error))) from error
            except (RayActorError, RayTaskError) as error:
                raise ApiError(503, "agent_failed", f"the search broke off ({type(error).__name__})") from error
            except (asyncio.CancelledError, GeneratorExit):  # of a refused one, `cancel` raises the refusal again
                stream.cancel()
                raise

    async def _of_video(self, what: str, corpus: str | None, video_id: str, *more: Any) -> Any:
        try:
            return await getattr(self._library, what).remote(self._corpus(corpus), video_id, *more)
        except ClipError as error:
            raise ApiError(404, "unknown_video", str(getattr(error, "cause", error))) from error

    def _model(self, name: str | None) -> str:
        names = list(self._agents)
        if name not in (None, *names):
            raise ApiError(404, "unknown_model", f"model {name!r} is not served; there are {', '.join(names)}")
        return name or names[0]

    def _corpus(self, name: str | None) -> str:
        names = list(self._config.corpora)
        if name is None and len(names) == 1:
            return names[0]
        if name not in names:
            raise ApiError(404, "unknown_corpus", f"corpus {name!r} is not served; there are {', '.join(names)}")
        return str(name)
