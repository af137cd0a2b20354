"""The routes of a search: begun, read again after a lost connection, and ended before its time."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Request
from fastapi.responses import Response
from pydantic import BeforeValidator

from pipelines.serve.gateway.answers import ADMITTED, OF_SEARCH, errors
from pipelines.serve.gateway.events import numbered, server_sent
from pipelines.serve.gateway.faults import ApiError
from pipelines.serve.gateway.gateway import Served
from pipelines.serve.gateway.runs import SearchRun
from pipelines.serve.gateway.schema import SearchAnswer, SearchBody

router, runs = APIRouter(prefix="/v1/search"), APIRouter(prefix="/v1/search")
SearchId = Annotated[str, Path(pattern="^[0-9a-f]{32}$", examples=["0123456789abcdef0123456789abcdef"])]
LastEvent = Annotated[
    int,
    BeforeValidator(lambda value: value or 0),  # some clients send it empty where they have read none
    Header(ge=0, le=10**9, alias="Last-Event-ID", description="the last event that was read"),
]
OF_A_SEARCH = errors("unknown_search", "search_gone", "invalid_request", *ADMITTED)
SEARCH_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "the answer, or with `stream` its events", "content": {"text/event-stream": {}}},
    **errors(*OF_SEARCH, "query_too_long", also={"unknown_video": 422}),
}


@router.post("", response_model=SearchAnswer, responses=SEARCH_ANSWERS)
async def search(body: SearchBody, request: Request, gateway: Served) -> Any:
    """Find one moment. With `stream` the answer is server-sent events: retrieved, turn.started, reasoning.delta,
    called (where long videos are navigated), verdict, refined, moment, and at the end `done` with the whole answer, or
    `error`; it begins at once, also where the search waits for its turn. The header X-Search-Id names the search to
    `GET /v1/search/{search_id}/events`."""
    run = await gateway.begin(body, request, resumable=bool(body.stream))
    return sent(run) if body.stream else await run.result()


@runs.get(
    "/{search_id}/events",
    response_class=Response,
    responses={
        200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
        204: {"description": "the search is over, and its end was read"},
        **OF_A_SEARCH,
    },
)
async def events(search_id: SearchId, request: Request, gateway: Served, last_event_id: LastEvent = 0) -> Any:
    """Send the events of a streamed search behind Last-Event-ID, or all, while it runs and for a while after."""
    run = gateway.run(search_id, request)
    if last_event_id > len(run.events):
        raise ApiError("invalid_request", f"Last-Event-ID: the search has only sent {len(run.events)} events")
    if run.over and last_event_id == len(run.events):
        return Response(status_code=204)
    return sent(run, last_event_id)


@runs.delete("/{search_id}", status_code=204, responses=OF_A_SEARCH)
async def cancel(search_id: SearchId, request: Request, gateway: Served) -> None:
    """End a streamed search at once; one that is over stays as it is."""
    gateway.run(search_id, request).cancel()


def sent(run: SearchRun, after: int = 0) -> Response:
    """Return the response that sends the events of a run behind one."""
    return server_sent(numbered(run.read(after)), {"X-Search-Id": run.id})
