"""A search by its id: the events that a reader missed, and its end before its time."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Request
from fastapi.responses import Response, StreamingResponse

from pipelines.serve.gateway.faults import ADMITTED, errors
from pipelines.serve.gateway.replica import gateway
from pipelines.serve.gateway.runs import SearchRun
from pipelines.serve.gateway.stream import ApiError, server_sent

router = APIRouter()
SearchId = Annotated[str, Path(pattern="^[0-9a-f]{32}$", examples=["0123456789abcdef0123456789abcdef"])]
LastEvent = Annotated[int, Header(ge=0, le=10**9, alias="Last-Event-ID", description="the last event that was read")]
OF_A_SEARCH = errors("unknown_search", "search_gone", "invalid_request", *ADMITTED)


@router.get(
    "/v1/search/{search_id}/events",
    response_class=Response,
    responses={
        200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
        204: {"description": "the search is over, and its end was read"},
        **OF_A_SEARCH,
    },
)
async def events(search_id: SearchId, request: Request, last_event_id: LastEvent = 0) -> Any:
    """The events of a streamed search behind Last-Event-ID, or all, while it runs and for a while after."""
    run = _run(search_id, request)
    if last_event_id > len(run.events):
        raise ApiError(422, "invalid_request", f"Last-Event-ID: the search has only sent {len(run.events)} events")
    if run.over and last_event_id == len(run.events):
        return Response(status_code=204)
    headers = {"Cache-Control": "no-store", "X-Search-Id": run.id}
    return StreamingResponse(server_sent(run.read(last_event_id)), media_type="text/event-stream", headers=headers)


@router.delete("/v1/search/{search_id}", status_code=204, responses=OF_A_SEARCH)
async def cancel(search_id: SearchId, request: Request) -> None:
    """End a streamed search at once; one that is over stays as it is."""
    _run(search_id, request).cancel()


def _run(search_id: str, request: Request) -> SearchRun:
    """The search of this key. Reading goes by the search's own place among those of the key that run."""
    served = gateway()
    key = served.key_of(request)
    with served.within_limits(key, holds=False):
        run: SearchRun = served.runs.get(search_id, key.name if key else None)
        return run
