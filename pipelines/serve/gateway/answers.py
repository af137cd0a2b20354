"""How refusals look over HTTP, those of the framework included, and how the description of the API lists them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from pipelines.serve.gateway.faults import CODES, FULL_DISK, ApiError, reason
from pipelines.serve.gateway.schema import ErrorAnswer
from vsr1.retrieval.request import RetrievalError
from vsr1.video.clips import ClipError

_OF_STATUS = {
    400: "unreadable_body",
    404: "unknown_route",
    405: "wrong_method",
    408: "slow_body",
    413: "body_too_large",
}
OPENAI_ROUTES = ("/v1/chat/completions", "/v1/models")  # and below: their clients want a shape of their own
MOST_FAULTS = 10  # of a body that are told
ALWAYS = ("headers_too_large", "foreign_host", "internal_error")
ADMITTED = ("unknown_key", "rate_limited", *ALWAYS)
WITH_BODY = ("unreadable_body", "slow_body", "body_too_large", "wrong_content_type", "invalid_request", *ADMITTED)
OF_SEARCH = ("unknown_corpus", "unknown_model", "busy", "agent_failed", "search_timeout", "stopping", *WITH_BODY)


def errors(
    *codes: str, also: dict[str, int] | None = None, unprocessable: int = 422, gives: Iterable[str] = ()
) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a route that refuses with these codes.

    Args:
        also: codes with another status than that of `CODES`.
        unprocessable: the route's status for what is 422 elsewhere.
        gives: media types of its answer, where that is no JSON.
    """
    responses: dict[int | str, dict[str, Any]] = {200: {"content": {kind: {} for kind in gives}}} if gives else {}
    for code, status in [*((code, CODES[code][0]) for code in codes), *(also or {}).items()]:
        content: dict[str, Any] = {"application/json": {"examples": {}}}
        place = unprocessable if status == 422 else status
        response = responses.setdefault(place, {"model": ErrorAnswer, "content": content})
        examples = response["content"]["application/json"]["examples"]
        examples[code] = {"value": {"error": {"code": code, "message": CODES[code][1]}}}
        response["description"] = ", ".join(f"`{name}`" for name in examples)
    return responses


def handle_faults(app: FastAPI) -> None:
    """Give every refusal, the framework's own and those of the library included, the one shape."""
    for kind, refusal_of in _REFUSALS.items():
        app.add_exception_handler(kind, partial(_refuse, refusal_of))
    app.add_exception_handler(HTTPException, _framework)


async def _refuse(refusal_of: Callable[[Any], ApiError], request: Request, error: Any) -> Response:
    return answer(request.url.path, refusal_of(error))


def _invalid(error: Any) -> ApiError:
    return ApiError("invalid_request", "; ".join(map(_fault, islice(error.errors(), MOST_FAULTS))))


def _fault(item: dict[str, Any]) -> str:
    if item["type"] == "json_invalid":
        return f"the body is no JSON: {item['ctx']['error']} at character {item['loc'][-1]}"
    return f"{'.'.join(map(str, item['loc'][1:]))[:100] or 'body'}: {item['msg']}"


def _disk(error: Any) -> ApiError:
    if getattr(error, "cause", error).errno in FULL_DISK:
        return ApiError("disk_full")
    raise error


def _no_part(error: Any) -> ApiError:
    return ApiError("not_ready", "a part of the server is not there, or has too much to do; try again", 5)


_REFUSALS: dict[type[Exception], Callable[[Any], ApiError]] = {
    ApiError: lambda error: getattr(error, "cause", error),  # as it was raised, without Ray's wrapping
    ClipError: lambda error: ApiError("unknown_video", "the corpus has no such video that can be read"),  # no folders
    RetrievalError: lambda error: ApiError("retrieval_failed", reason(error)),
    RequestValidationError: _invalid,
    OSError: _disk,
    ClientDisconnect: lambda error: ApiError("gone"),
    DeploymentUnavailableError: _no_part,
    BackPressureError: _no_part,
    RayActorError: _no_part,
    Exception: lambda error: ApiError("internal_error"),
}


async def _framework(request: Request, error: Any) -> Response:
    code, where = _OF_STATUS.get(error.status_code, "invalid_request"), f"{request.method} {request.url.path[:200]}"
    messages = {
        "unknown_route": f"{where}: no such route; /openapi.json lists them",
        "wrong_method": f"{where}: not with this method; the Allow header names those that go",
    }
    headers = dict(error.headers or {})
    if code == "wrong_method":  # Starlette names the methods of the path's first route only
        routes = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
        headers["Allow"] = ", ".join(sorted({method for route in routes for method in route.methods}))
    refusal = ApiError(code, messages.get(code, str(error.detail)), status=error.status_code)
    return answer(request.url.path, refusal, headers)


def answer(path: str, error: ApiError, headers: dict[str, str] | None = None) -> Response:
    """Return the error as this path's clients expect it; a body that was refused unread ends the connection."""
    headers = dict(headers or {})
    if error.status in (408, 413, 415, 421, 431):
        headers["Connection"] = "close"
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.retry_after_s:
        headers["Retry-After"] = str(error.retry_after_s)
    if not path.startswith(OPENAI_ROUTES):
        return JSONResponse(error.body(), error.status, headers)
    return JSONResponse(openai_error(error), 400 if error.status == 422 else error.status, headers)


def openai_error(error: ApiError) -> dict[str, Any]:
    """Return the error in the shape of the OpenAI API."""
    kind = {401: "authentication_error", 429: "rate_limit_error"}.get(error.status)
    kind = kind or ("server_error" if error.status >= 500 else "invalid_request_error")
    return {"error": error.body()["error"] | {"type": kind, "param": None}}
