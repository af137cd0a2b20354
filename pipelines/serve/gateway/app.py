"""The gateway as an HTTP application of Ray Serve: its routes, what surrounds them, the page, and its readiness."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Literal

from fastapi import APIRouter, FastAPI, Security
from fastapi.responses import Response
from fastapi.security import APIKeyHeader
from ray import serve
from starlette.middleware.cors import CORSMiddleware

from pipelines.serve.gateway import asks, chat, metrics, retrieve, searches, videos
from pipelines.serve.gateway.answers import ADMITTED, ALWAYS, errors, handle_faults
from pipelines.serve.gateway.faults import ApiError
from pipelines.serve.gateway.gateway import Admitted, Gateway, Served
from pipelines.serve.gateway.guard import Guard
from pipelines.serve.gateway.schema import Corpus, Health
from pipelines.serve.running import running_agents

status, known, page = APIRouter(), APIRouter(), APIRouter()
KEY = Security(APIKeyHeader(name="X-API-Key", auto_error=False))  # so that /docs can send one; `Gateway.key_of` decides
PAGE = {path.name: path.read_bytes() for path in (Path(__file__).parent / "page").iterdir()}
PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src blob:; media-src 'self' blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
}


@known.get("/v1/corpora", responses=errors(*ADMITTED))
async def corpora(gateway: Admitted) -> list[Corpus]:
    """Return what can be searched."""
    rows, examples = await gateway.library.describe.remote(), await gateway.library.examples.remote()
    return [
        Corpus(name=name, videos=row["videos"], index_version=row["index_version"], examples=examples[name])
        for name, row in rows.items()
    ]


@page.get("/", include_in_schema=False)
async def index(gateway: Served) -> Response:
    return Response(PAGE["ask.html" if gateway.asks else "index.html"], media_type="text/html", headers=PAGE_HEADERS)


@page.get("/page.{part}", include_in_schema=False)
async def page_part(
    part: Literal["css", "js", "parts.js", "stream.js", "player.js", "library.js", "ask.js"],
) -> Response:
    kind = "text/css" if part == "css" else "text/javascript"
    return Response(PAGE[f"page.{part}"], media_type=kind, headers={"Cache-Control": "no-cache"})


@status.get("/healthz", responses=errors(*ALWAYS))
async def healthz() -> Health:
    """Say that the gateway is there."""
    return Health(status="ok")


@status.get("/readyz", responses=errors("not_ready", "stopping", *ALWAYS))
async def readyz(gateway: Served) -> Health:
    """Say that the corpora can be searched, every model has an agent, and what is new is let in."""
    if gateway.is_stopping:
        raise ApiError("stopping", retry_after_s=60)
    agents = await asyncio.to_thread(running_agents, serve.get_replica_context().app_name)
    if missing := [name for name in gateway.models if not agents.get(name)]:
        raise ApiError("not_ready", f"no agent runs of {', '.join(missing)}; wait for it", retry_after_s=5)
    return Health(status="ok", detail=await gateway.library.describe.remote(), models=agents)


def build_app(gateway: Gateway) -> FastAPI:
    """Return the application that answers for a gateway; without agents it retrieves and does no more."""
    what = "Ask about one long film." if gateway.asks else "Search a corpus of videos for one moment."
    app = FastAPI(title="vsr1", description=what, docs_url="/docs", redoc_url=None)
    app.state.gateway = gateway
    handle_faults(app)
    app.add_middleware(Guard, settings=gateway.settings)
    if origins := gateway.settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],  # OpenAI's client sends some of its own; a key is among none that a browser adds
            expose_headers=["X-Search-Id", "X-Request-Id", "Retry-After"],
        )
    app.add_middleware(metrics.RequestCount)  # around all others
    if gateway.asks:
        routers = [asks.router, searches.runs, known, page]
    else:
        of_agents = [searches.router, searches.runs, chat.router, videos.router, known, page]
        routers = [*(of_agents if gateway.models else ()), retrieve.router]
    for router in (status, metrics.router):
        app.include_router(router)
    for router in routers:
        app.include_router(router, dependencies=[KEY])
    app.openapi()  # the description is kept, and is of GET; HEAD is the same without a body
    for route in app.routes:
        methods: set[str] = getattr(route, "methods", None) or set()
        if "GET" in methods:
            methods.add("HEAD")
    return app


@serve.deployment(name="gateway", max_ongoing_requests=1024)
@serve.ingress()
class HttpGateway(Gateway):
    """The gateway behind HTTP."""

    async def __serve_build_asgi_app__(self) -> FastAPI:
        return build_app(self)
