"""The search for clients of the OpenAI API: `POST /v1/chat/completions` and `GET /v1/models`.

The last message of the user is the query. The answer is a sentence; the field `search` beside OpenAI's own has all of
it. What the policy has no use for (temperature, max_tokens, ...) is ignored; what asks for another kind of answer is
refused.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from fastapi.responses import StreamingResponse
from openai.types import Model
from openai.types.chat import ChatCompletion
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipelines.serve.gateway.faults import ADMITTED, OF_SEARCH, errors, json_only, openai_error
from pipelines.serve.gateway.replica import gateway
from pipelines.serve.gateway.runs import SearchRun
from pipelines.serve.gateway.schema import QUERY, SearchAnswer, SearchBody, SearchOptions, Whole
from pipelines.serve.gateway.stream import ApiError

router = APIRouter()
REFUSED = ("tools", "functions", "logprobs", "audio", "prediction", "web_search_options")  # would change the answer


ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "the answer, or with `stream` its chunks", "content": {"text/event-stream": {}}},
    **errors(
        "model_not_found", *OF_SEARCH, also=dict.fromkeys(("unknown_video", "invalid_request", "query_too_long"), 400)
    ),
}
del ANSWERS[422]  # 400 here


class Part(BaseModel):
    model_config = ConfigDict(strict=True)

    type: Literal["text"]
    text: str


class Message(BaseModel):
    model_config = ConfigDict(strict=True)

    role: str
    content: str | list[Part] | None = None

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.content) if isinstance(self.content, list) else self.content or ""


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True)

    include_usage: bool = False


class ChatBody(SearchOptions):
    """OpenAI's request, and beside its fields those of a search."""

    model_config = ConfigDict(
        extra="allow",
        strict=True,
        json_schema_extra={"examples": [{"model": "vsr1", "messages": [{"role": "user", "content": QUERY}]}]},
    )

    model: str
    messages: list[Message] = Field(min_length=1, max_length=1000, description="one at least has the role `user`")
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Annotated[Whole, Field(ge=1, le=1)] | None = None

    def search(self) -> SearchBody:
        """The search that the last message of the user asks for.

        Raises:
            ApiError: there is none, or something that a search has not is wanted.
        """
        told = [message.text for message in self.messages if message.role == "user"]
        wanted = [name for name in REFUSED if (self.model_extra or {}).get(name)]
        if not told or wanted:
            raise ApiError(
                422, "invalid_request", _unsupported(wanted) if wanted else "messages: none has the role user"
            )
        try:
            options = {name: getattr(self, name) for name in SearchOptions.model_fields}
            return SearchBody(query=told[-1], model=self.model, **options)
        except ValidationError as error:
            fault = error.errors(include_input=False)[0]["msg"]
            raise ApiError(422, "invalid_request", f"the last message of the user: {fault}") from None


class ChatAnswer(ChatCompletion):
    """OpenAI's answer, and the whole search."""

    search: SearchAnswer


class Models(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


@router.get("/v1/models", responses=errors(*ADMITTED))
async def models(request: Request) -> Models:
    """What may be named as `model`."""
    served = gateway()
    with served.admitted(request):
        return Models(data=[Model(id=name, object="model", created=0, owned_by="vsr1") for name in served.models])


@router.post(
    "/v1/chat/completions",
    response_model=ChatAnswer,
    responses=ANSWERS,
    dependencies=[Depends(json_only)],
)
async def complete(body: ChatBody, request: Request) -> Any:
    """OpenAI's chat completion as a search. A reader that goes away cancels it."""
    served = gateway()
    served.key_of(request)
    if body.model not in served.models:
        there = ", ".join(served.models)
        raise ApiError(404, "model_not_found", f"model {body.model!r} is not served; there is {there}")
    run = await served.begin(body.search(), request)
    if body.stream:
        usage = bool(body.stream_options and body.stream_options.include_usage)
        return StreamingResponse(_chunks(run, body.model, _site(request), usage), media_type="text/event-stream")
    result = await run.result()
    message = {"role": "assistant", "content": sentence(result, _site(request)), "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    return _frame(run, "chat.completion", body.model) | {"choices": [choice], "usage": _usage(result), "search": result}


def sentence(result: dict[str, Any], site: str) -> str:
    """What a person reads: the video, the seconds and the link, or that there is nothing."""
    for found in result["moments"]:
        return (
            f"Found in video {found['video_id']}, from {found['start']:.1f} s to {found['end']:.1f} s: "
            f"{site}{found['deep_link']}"
        )
    return {"not_found": "No video matches."}.get(result["status"], "The time limit ended the search without a match.")


async def _chunks(run: SearchRun, model: str, site: str, usage: bool) -> AsyncIterator[str]:
    def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return _data(_frame(run, "chat.completion.chunk", model) | {"choices": [choice], **more})

    yield chunk({"role": "assistant", "content": ""})
    async with aclosing(run.read()) as events:
        async for _, event in events:
            if event["type"] == "reasoning.delta":
                yield chunk({"reasoning_content": event["text"]})
            elif event["type"] == "done":
                yield chunk({"content": sentence(event["result"], site)})
                yield chunk({}, "stop", search=event["result"])
                if usage:
                    last = {"choices": [], "usage": _usage(event["result"])}
                    yield _data(_frame(run, "chat.completion.chunk", model) | last)
    if run.failure:
        yield _data(openai_error(run.failure))
    yield "data: [DONE]\n\n"


def _frame(run: SearchRun, kind: str, model: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{run.id}", "object": kind, "created": run.began, "model": model}


def _usage(result: dict[str, Any]) -> dict[str, int]:
    used = result["usage"]
    told = used["text_tokens"] + used["latent_tokens"]
    return {
        "prompt_tokens": used["prompt_tokens"], "completion_tokens": told, "total_tokens": used["prompt_tokens"] + told,
    }  # fmt: skip


def _data(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def _site(request: Request) -> str:
    return str(request.base_url).rstrip("/")


def _unsupported(wanted: list[str]) -> str:
    return f"{wanted[0]}: a search does not support it; leave it out"
