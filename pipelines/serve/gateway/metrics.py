"""`GET /metrics`, for Prometheus: requests, searches, turns, tokens. No label holds a key, a query or a video."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from fastapi import APIRouter
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.serve.gateway.events import Event
from pipelines.serve.gateway.faults import ApiError

REGISTRY = CollectorRegistry()
WAITS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)  # seconds; a search may wait before it runs
REQUESTS = Counter("vsr1_requests", "Requests that were answered.", ["method", "route", "status"], registry=REGISTRY)
OPEN = Gauge("vsr1_requests_now", "Requests whose answers have not ended.", registry=REGISTRY)
SECONDS = Histogram(
    "vsr1_request_seconds", "From a request to the end of its answer.", ["route"], buckets=WAITS, registry=REGISTRY
)
SEARCHES = Counter("vsr1_searches", "Searches that ended, by status or code.", ["result"], registry=REGISTRY)
RUNNING = Gauge(
    "vsr1_searches_now", "Searches that run, and those that wait for an agent.", ["state"], registry=REGISTRY
)
SEARCH_SECONDS = Histogram("vsr1_search_seconds", "Of a search that was answered.", buckets=WAITS, registry=REGISTRY)
TURNS = Histogram(
    "vsr1_search_turns", "Videos that a search looked at.", buckets=(0, 1, 2, 3, 4, 6, 8, 12, 16), registry=REGISTRY
)
TOKENS = Counter("vsr1_tokens", "Tokens of the policy: prompt, text, latent.", ["kind"], registry=REGISTRY)
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

router = APIRouter()


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics() -> Response:
    """Return the counts of this gateway, in the text format of Prometheus."""
    return Response(generate_latest(REGISTRY), media_type=CONTENT_TYPE_LATEST)


class RequestCount:
    """Middleware around all others: counts each request by its route, which is that of the description, never the path.

    Who goes away before the answer begins is counted as 499, as nginx does: it is no fault of the server.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        status, began = 0, time.monotonic()

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            with OPEN.track_inprogress():
                await self._app(scope, receive, noting)
        except asyncio.CancelledError:
            status = status or 499
            raise
        finally:
            route = getattr(scope.get("route"), "path_format", "none")
            method = scope["method"] if scope["method"] in METHODS else "other"
            REQUESTS.labels(method, route, status or 500).inc()
            SECONDS.labels(route).observe(time.monotonic() - began)


def open_requests() -> float:
    """Return how many requests have an answer that has not ended."""
    return sum(sample.value for metric in OPEN.collect() for sample in metric.samples)


@contextmanager
def searching() -> Iterator[Callable[[], None]]:
    """Be around a search, which waits until the function that this gives is called, and runs from then on."""
    with ExitStack() as state:
        state.enter_context(RUNNING.labels("waiting").track_inprogress())

        def runs() -> None:
            state.close()
            state.enter_context(RUNNING.labels("running").track_inprogress())

        yield runs


def searched(last: Event, failure: ApiError | None) -> None:
    """Count a search by its last event."""
    SEARCHES.labels(failure.code if failure else last["result"]["status"]).inc()
    if failure is None:
        usage = last["result"]["usage"]
        SEARCH_SECONDS.observe(usage["seconds"])
        if "turns" in last["result"]:
            TURNS.observe(len(last["result"]["turns"]))
        for kind in ("prompt", "text", "latent"):
            TOKENS.labels(kind).inc(usage[f"{kind}_tokens"])
