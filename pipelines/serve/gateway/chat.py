"""The search for clients of the OpenAI API: `POST /v1/chat/completions` and `GET /v1/models`.

The last message of the user is the query. The answer is a sentence; the field `search` beside OpenAI's own has all of
it. What the policy has no use for (temperature, max_tokens, ...) is ignored; what asks for another kind of answer
(`PLAIN`) is refused.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Request
from openai.types import Model
from openai.types.chat import ChatCompletion
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipelines.serve.gateway.answers import ADMITTED, OF_SEARCH, errors, openai_error
from pipelines.serve.gateway.events import server_sent
from pipelines.serve.gateway.faults import ApiError
from pipelines.serve.gateway.gateway import Admitted, Gateway, Served
from pipelines.serve.gateway.runs import SearchRun
from pipelines.serve.gateway.schema import QUERY, SearchAnswer, SearchBody, SearchOptions, TopK, Whole

router = APIRouter()
PLAIN: dict[str, tuple[Any, ...]] = {  # what would change the answer, and the values with which it does not
    **dict.fromkeys(
        ("tools", "functions", "logprobs", "top_logprobs", "audio", "prediction", "web_search_options"), ()
    ),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "the answer, or with `stream` its chunks", "content": {"text/event-stream": {}}},
    **errors("model_not_found", "query_too_long", *OF_SEARCH, also={"unknown_video": 422}, unprocessable=400),
}


class Message(BaseModel):
    model_config = ConfigDict(strict=True)

    role: str
    content: str | list[dict[str, Any]] | None = None

    def text(self) -> str:
        """Return the words of a message.

        Raises:
            ApiError: it has something else too.
        """
        parts = self.content if isinstance(self.content, list) else [{"type": "text", "text": self.content or ""}]
        if not all(part.get("type") == "text" and isinstance(part.get("text"), str) for part in parts):
            raise ApiError("invalid_request", "messages: the last of the user may hold text only")
        return "".join(part["text"] for part in parts)


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True)

    include_usage: bool | None = None


class ChatBody(SearchOptions):
    """OpenAI's request, and beside its fields those of a search."""

    model_config = ConfigDict(
        extra="allow",
        strict=True,
        json_schema_extra={"examples": [{"model": "vsr1", "messages": [{"role": "user", "content": QUERY}]}]},
    )

    model: str
    messages: list[Message] = Field(min_length=1, max_length=1000, description="one at least has the role `user`")
    stream: bool | None = None
    search_top_k: TopK = None  # `top_k` is a setting of sampling to most clients, and ignored like the others
    stream_options: StreamOptions | None = None
    n: Annotated[Whole, Field(ge=1, le=1)] | None = None

    def search(self) -> SearchBody:
        """Return the search that the last message of the user asks for.

        Raises:
            ApiError: there is none, or something is wanted that a search does not give.
        """
        for name, value in (self.model_extra or {}).items():
            if value and name in PLAIN and value not in PLAIN[name]:
                raise ApiError("invalid_request", f"{name}: a search does not support it; leave it out")
        messages = [message for message in self.messages if message.role == "user"]
        if not messages:
            raise ApiError("invalid_request", "messages: none has the role user")
        options = {name: getattr(self, name) for name in SearchOptions.model_fields}
        try:
            return SearchBody(query=messages[-1].text(), model=self.model, top_k=self.search_top_k, **options)
        except ValidationError as error:
            fault = error.errors(include_input=False)[0]["msg"]
            raise ApiError("invalid_request", f"the last message of the user: {fault}") from None


class ChatAnswer(ChatCompletion):
    """OpenAI's answer, and the whole search."""

    search: SearchAnswer


class Models(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


@router.get("/v1/models", responses=errors(*ADMITTED))
async def models(gateway: Admitted) -> Models:
    """Return what may be named as `model`."""
    return Models(data=[_model(name, gateway) for name in gateway.models])


@router.get("/v1/models/{model}", responses=errors("model_not_found", *ADMITTED))
async def model(model: Annotated[str, Path(examples=["vsr1"])], gateway: Admitted) -> Model:
    """Return one that may be named as `model`."""
    return _model(model, gateway)


@router.post("/v1/chat/completions", response_model=ChatAnswer, responses=ANSWERS)
async def complete(body: ChatBody, request: Request, gateway: Served) -> Any:
    """Answer a chat by a search. A reader that goes away cancels it."""
    gateway.key_of(request)
    _model(body.model, gateway)
    run = await gateway.begin(body.search(), request)
    site = str(request.base_url).rstrip("/")
    if body.stream:
        usage = bool(body.stream_options and body.stream_options.include_usage)
        return server_sent(_chunks(run, body.model, site, usage))
    result = await run.result()
    message = {"role": "assistant", "content": sentence(result, site), "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    return _frame(run, "chat.completion", body.model) | {"choices": [choice], "usage": _usage(result), "search": result}


def _model(name: str, gateway: Gateway) -> Model:
    if name not in gateway.models:
        raise ApiError("model_not_found", f"model {name!r} is not served; there is {', '.join(gateway.models)}")
    return Model(id=name, object="model", created=0, owned_by="vsr1")


def sentence(result: dict[str, Any], site: str) -> str:
    """Return what a person reads: the video, the seconds and the link, or that there is nothing."""
    for moment in result["moments"]:
        return (
            f"Found in video {moment['video_id']}, from {moment['start']:.1f} s to {moment['end']:.1f} s: "
            f"{site}{moment['deep_link']}"
        )
    return {"not_found": "No video matches."}.get(result["status"], "The time limit ended the search without a match.")


async def _chunks(run: SearchRun, model: str, site: str, usage: bool) -> AsyncIterator[str]:
    frame = _frame(run, "chat.completion.chunk", model) | ({"usage": None} if usage else {})

    def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return _json(frame | {"choices": [choice], **more})

    yield chunk({"role": "assistant", "content": ""})
    async with aclosing(run.read()) as events:
        async for _, event in events:
            if event["type"] == "reasoning.delta":
                yield chunk({"reasoning_content": event["text"]})
            elif event["type"] == "done":
                yield chunk({"content": sentence(event["result"], site)})
                yield chunk({}, "stop", search=event["result"])
                if usage:
                    yield _json(frame | {"choices": [], "usage": _usage(event["result"])})
    if run.failure:
        yield _json(openai_error(run.failure))
    yield "[DONE]"


def _frame(run: SearchRun, kind: str, model: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{run.id}", "object": kind, "created": run.began, "model": model}


def _usage(result: dict[str, Any]) -> dict[str, int]:
    used = result["usage"]
    prompt, completion = used["prompt_tokens"], used["text_tokens"] + used["latent_tokens"]
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False)
