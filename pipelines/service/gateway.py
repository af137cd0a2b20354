"""The gateway: HTTP in, events out. Every error has a code for programs and a message for people."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError

from pipelines.service.intake import Intake
from pipelines.service.keys import Limiter, known, read_keys, secret_of
from pipelines.service.schema import Corpus, ErrorAnswer, Health, SearchAnswer, SearchBody
from pipelines.service.stream import ApiError, Event, server_sent
from pipelines.service.videos import router as videos
from vsr1.config import ServeConfig
from vsr1.retrieval.request import SearchTimeoutError, UnknownVideoError

app = FastAPI(title="vsr1", description="Search a corpus of videos for one moment.", docs_url="/docs", redoc_url=None)
app.include_router(videos)
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
    """`agents` and `library` are the handles of the other deployments."""

    def __init__(self, config: ServeConfig, agents: Any, library: Any) -> None:
        self._config, self.library, self.intake = config, library, Intake(config, library)
        self._agents = agents.options(stream=True)
        self._keys = read_keys(config.key_file) if config.key_file else None
        self._limiter = Limiter()

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
        with self.admitted(request):
            found = await self.library.describe.remote()
        return [Corpus(name=n, videos=row["videos"], index_version=row["index_version"]) for n, row in found.items()]

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
        """The corpora can be searched."""
        return Health(status="ok", detail=await self.library.describe.remote())

    @contextmanager
    def admitted(self, request: Request) -> Iterator[None]:
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

    async def _events(self, body: SearchBody, request: Request) -> AsyncGenerator[Event, None]:
        with self.admitted(request):
            stream = self._agents.search.remote(uuid4().hex, body, self.corpus(body.corpus))
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
            finally:
                stream.cancel()

    def corpus(self, name: str | None) -> str:
        """The corpus of a request, which may leave it out where there is only one; raises `ApiError` 404."""
        names = list(self._config.corpora)
        if name is None and len(names) == 1:
            return names[0]
        if name not in names:
            raise ApiError(404, "unknown_corpus", f"corpus {name!r} is not served; there are {', '.join(names)}")
        return str(name)
