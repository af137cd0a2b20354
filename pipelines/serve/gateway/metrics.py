"""`GET /metrics`, for Prometheus: requests, searches, turns, tokens. No label holds a key, a query or a video."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from fastapi import APIRouter, FastAPI
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_fastapi_instrumentator import Instrumentator
from prometheus_fastapi_instrumentator.metrics import Info

from pipelines.serve.gateway.events import Event
from pipelines.serve.gateway.faults import ApiError

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
    """Return the counts of this gateway, in the text format of Prometheus."""
    return Response(generate_latest(REGISTRY), media_type=CONTENT_TYPE_LATEST)


def count_requests(app: FastAPI) -> None:
    """Count every request of an application by its route, which is that of the description, never the path itself."""

    def count(info: Info) -> None:
        route = getattr(info.request.scope.get("route"), "path", "none")
        method = info.method if info.method in METHODS else "other"
        REQUESTS.labels(method, route, info.modified_status).inc()
        SECONDS.labels(route).observe(info.modified_duration)

    Instrumentator(should_group_status_codes=False).add(count).instrument(app)


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
        TURNS.observe(len(last["result"]["turns"]))
        for kind in ("prompt", "text", "latent"):
            TOKENS.labels(kind).inc(usage[f"{kind}_tokens"])
