"""`GET /metrics`, for Prometheus: requests, searches, turns, tokens. No label holds a key, a query or a video."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fastapi import APIRouter
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import Message, Receive, Scope, Send

from pipelines.serve.gateway.replica import Middleware
from pipelines.serve.gateway.stream import ApiError, Event

REGISTRY = CollectorRegistry()
REQUESTS = Counter("vsr1_requests", "Requests that were answered.", ["method", "route", "status"], registry=REGISTRY)
SECONDS = Histogram("vsr1_request_seconds", "From a request to the end of its answer.", ["route"], registry=REGISTRY)
SEARCHES = Counter("vsr1_searches", "Searches that ended, by status or code.", ["result"], registry=REGISTRY)
RUNNING = Gauge(
    "vsr1_searches_now", "Searches that run, and those that wait for an agent.", ["state"], registry=REGISTRY
)
SEARCH_SECONDS = Histogram("vsr1_search_seconds", "Of a search that was answered.", registry=REGISTRY)
TURNS = Histogram(
    "vsr1_search_turns", "Videos that a search looked at.", buckets=(0, 1, 2, 3, 4, 6, 8, 12, 16), registry=REGISTRY
)
TOKENS = Counter("vsr1_tokens", "Tokens of the policy: prompt, text, latent.", ["kind"], registry=REGISTRY)
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

router = APIRouter()


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics() -> Response:
    """Counts of this gateway, in the text format of Prometheus."""
    return Response(generate_latest(REGISTRY), media_type=CONTENT_TYPE_LATEST)


class Counted(Middleware):
    """Counts every request by its route, which is that of the description, never the path itself."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        status, began = 500, time.monotonic()

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, told)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            method = scope["method"] if scope["method"] in METHODS else "other"
            REQUESTS.labels(method, route, status).inc()
            SECONDS.labels(route).observe(time.monotonic() - began)


@contextmanager
def searching() -> Iterator[Callable[[], None]]:
    """Around a search: it waits until the function that is given is called for the first time, then it runs."""
    state = "waiting"
    RUNNING.labels(state).inc()

    def seen() -> None:
        nonlocal state
        if state == "waiting":
            RUNNING.labels(state).dec()
            state = "running"
            RUNNING.labels(state).inc()

    try:
        yield seen
    finally:
        RUNNING.labels(state).dec()


def searched(last: Event, failure: ApiError | None) -> None:
    """Count a search by its last event."""
    SEARCHES.labels(failure.code if failure else last["result"]["status"]).inc()
    if failure is None:
        usage = last["result"]["usage"]
        SEARCH_SECONDS.observe(usage["seconds"])
        TURNS.observe(len(last["result"]["turns"]))
        for kind in ("prompt", "text", "latent"):
            TOKENS.labels(kind).inc(usage[f"{kind}_tokens"])
