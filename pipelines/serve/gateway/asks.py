"""The routes of questions about one film, where the agent navigates and searches nothing."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from pipelines.serve.gateway.answers import ADMITTED, OF_SEARCH, errors
from pipelines.serve.gateway.gateway import Served
from pipelines.serve.gateway.schema import AskAnswer, AskBody
from pipelines.serve.gateway.searches import sent
from pipelines.serve.gateway.videos import videos

router = APIRouter(prefix="/v1")
ASK_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "the answer, or with `stream` its events", "content": {"text/event-stream": {}}},
    **errors(*OF_SEARCH, "query_too_long", also={"unknown_video": 422}),
}


@router.post("/ask", response_model=AskAnswer, responses=ASK_ANSWERS)
async def ask(body: AskBody, request: Request, gateway: Served) -> Any:
    """Answer a question about one film under a budget of calls. With `stream` the answer is server-sent events:
    reasoning.delta, called, and at the end `done` with the whole answer, or `error`. The header X-Search-Id names it to
    `/v1/search/{search_id}`, where its events are read again, and where it is ended."""
    run = await gateway.begin(body, request, resumable=bool(body.stream))
    return sent(run) if body.stream else await run.result()


router.add_api_route(
    "/films",
    videos,
    name="films",
    description="Return the films of a corpus by id, a page at a time.",
    responses=errors("unknown_corpus", "invalid_request", *ADMITTED),
)
