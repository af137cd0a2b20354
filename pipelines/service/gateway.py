"""The gateway: HTTP in, events out. Every error has a code for programs and a message for people."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any
from uuid import uuid4

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError

from pipelines.service.schema import Corpus, ErrorAnswer, Health, SearchAnswer, SearchBody
from pipelines.service.stream import ApiError, server_sent
from vsr1.config import ServeConfig
from vsr1.retrieval.request import SearchTimeoutError, UnknownVideoError

RETRY_AFTER_S = 2

app = FastAPI(title="vsr1", description="Search a corpus of videos for one moment.", docs_url="/docs", redoc_url=None)
ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": ErrorAnswer} for status in (404, 422, 429, 503)}


@app.exception_handler(ApiError)
async def _api_error(request: Request, error: ApiError) -> Response:
    headers = {"Retry-After": str(RETRY_AFTER_S)} if error.status in (429, 503) else None
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
        self._config, self._library = config, library
        self._agents = agents.options(stream=True)

    @app.post("/v1/search", response_model=SearchAnswer, responses=ERRORS)
    async def search(self, body: SearchBody) -> Any:
        """Find one moment. With `stream` the answer is server-sent events: turn.started, retrieved, reasoning.delta,
        verdict, refined, moment, and at the end `done` with the whole answer, or `error`."""
        events = self._events(body)
        if body.stream:
            return StreamingResponse(
                server_sent(events), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
            )
        async for event in events:
            if event["type"] == "done":
                return event["result"]
        raise ApiError(503, "agent_failed", "the agent ended without an answer; try again")

    @app.get("/v1/corpora", responses=ERRORS)
    async def corpora(self) -> list[Corpus]:
        found = await self._library.describe.remote()
        return [
            Corpus(name=name, **{key: row[key] for key in ("videos", "index_version")}) for name, row in found.items()
        ]

    @app.get("/healthz")
    async def healthz(self) -> Health:
        """The gateway is there."""
        return Health(status="ok")

    @app.get("/readyz", responses=ERRORS)
    async def readyz(self) -> Health:
        """The corpora can be searched."""
        return Health(status="ok", detail=await self._library.describe.remote())

    async def _events(self, body: SearchBody) -> AsyncGenerator[dict[str, Any], None]:
        corpus = self._corpus(body.corpus)
        stream = self._agents.search.remote(uuid4().hex, body, corpus)
        try:
            async for event in stream:
                yield event
        except BackPressureError:
            raise ApiError(429, "busy", "as many searches as this server takes are running; try again") from None
        except UnknownVideoError as error:
            raise ApiError(422, "unknown_video", str(getattr(error, "cause", error))) from error
        except SearchTimeoutError as error:
            raise ApiError(503, "search_timeout", str(getattr(error, "cause", error))) from error
        except (RayActorError, RayTaskError) as error:
            raise ApiError(503, "agent_failed", f"the search broke off ({type(error).__name__}); try again") from error
        finally:
            stream.cancel()

    def _corpus(self, name: str | None) -> str:
        names = list(self._config.corpora)
        if name is None and len(names) == 1:
            return names[0]
        if name not in names:
            raise ApiError(404, "unknown_corpus", f"corpus {name!r} is not served; there are {', '.join(names)}")
        return str(name)
