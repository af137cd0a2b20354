"""What can go wrong, once for programs and once for people: every refusal of every route has a code of this table."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.routing import Match

from pipelines.serve.gateway.schema import ErrorAnswer
from pipelines.serve.gateway.stream import ApiError

CODES: dict[str, tuple[int, str]] = {  # status, and a message as an example
    "unreadable_body": (400, "There was an error parsing the body"),
    "unknown_key": (401, "send a valid API key: `Authorization: Bearer KEY` or `X-API-Key: KEY`"),
    "paths_are_off": (403, "no paths are taken here: serve.upload.path_root is not set; upload the file"),
    "urls_are_off": (403, "nothing is fetched here: serve.upload.urls is false; upload the file"),
    "unknown_route": (404, "GET /v2/search: no such route; /openapi.json lists them"),
    "unknown_corpus": (404, "corpus 'films' is not served; there are toy"),
    "unknown_model": (404, "model 'huge' is not served; there are small, large"),
    "unknown_video": (404, "corpus 'toy' has no video 'test_9999'; ids are those of the answers"),
    "no_source": (404, "the source file of video 'test_0001' is gone; put it back, or delete the video and add it"),
    "model_not_found": (404, "model 'gpt-4o' is not served; there is vsr1"),
    "unknown_search": (404, "there is no such search, or it has been over for a while; search again"),
    "wrong_method": (405, "PUT /v1/search: not with this method; the Allow header names those that go"),
    "slow_body": (408, "the body did not arrive within 20 s; send it faster"),
    "too_slow": (408, "the file took more than serve.upload.limit_s=600"),
    "duplicate_video": (409, "the corpus has this file as video 'test_0001'"),
    "video_exists": (409, "the corpus has another video 'test_0001'; delete it, or name this one otherwise"),
    "video_on_its_way": (409, "video 'kitchen_02' is on its way; delete it when it is ready or has failed"),
    "too_few_videos": (409, "a corpus needs 2 videos; add others before this one goes"),
    "search_gone": (410, "the search was cancelled, by a request or because nobody read its events; search again"),
    "body_too_large": (413, "the body is larger than 1024 KiB, see serve.body_limit_kib; send less"),
    "too_large": (413, "a video may have serve.upload.max_mib=1024 MiB; encode it smaller"),
    "wrong_content_type": (415, "send the body as Content-Type: application/json"),
    "invalid_request": (422, "query: String should have at least 1 character"),
    "query_too_long": (422, "ask in fewer words: the prompt is longer than the model's 1024 tokens"),
    "invalid_video_id": (422, "video_id '.hidden' must not begin with a dot"),
    "not_a_video": (422, "the file is not a video that can be used"),
    "too_many_pixels": (422, "a frame has more pixels than serve.upload.max_pixels; encode it smaller"),
    "too_many_frames": (422, "the video has more than serve.upload.max_frames frames"),
    "too_long": (422, "the video is longer than serve.upload.max_seconds"),
    "decode_limit": (422, "decoding took more memory or time than serve.upload allows; encode it smaller or shorter"),
    "path_refused": (422, "path '../films' is not a file below serve.upload.path_root that can be read"),
    "url_refused": (422, "'http://10.0.0.1/film.mp4' is not fetched: its address is not public"),
    "fetch_failed": (422, "'https://example.org/film.mp4' answered 404; upload the file instead"),
    "invalid_range": (422, "from 3 to 2 s: start must be before end, end within the video's 20.000 s"),
    "rate_limited": (429, "the limits of key 'tests' are reached"),
    "busy": (429, "this server runs as many searches as it takes; try again"),
    "headers_too_large": (431, "the headers are larger than 32 KiB; send less"),
    "internal_error": (500, "the server has a fault; its log has it under the X-Request-Id of this answer"),
    "agent_failed": (503, "the search broke off (ActorDiedError)"),
    "retrieval_failed": (503, "the index does not answer"),
    "stopping": (503, "this server is being stopped; ask again in a minute"),
    "not_ready": (503, "no agent runs of small; wait for it"),
    "search_timeout": (503, "a shard of the index did not answer in time"),
}
_OF_STATUS = {
    400: "unreadable_body",
    404: "unknown_route",
    405: "wrong_method",
    408: "slow_body",
    413: "body_too_large",
}
OPENAI_ROUTES = ("/v1/chat/completions", "/v1/models")  # their clients want a shape of their own
ALWAYS = ("headers_too_large", "internal_error")
ADMITTED = ("unknown_key", "rate_limited", *ALWAYS)
WITH_BODY = ("unreadable_body", "slow_body", "body_too_large", "wrong_content_type", "invalid_request", *ADMITTED)
OF_SEARCH = ("unknown_corpus", "unknown_model", "busy", "agent_failed", "search_timeout", "stopping", *WITH_BODY)


def errors(*codes: str, also: dict[str, int] | None = None) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that answers with these codes.

    Args:
        also: codes with another status than that of `CODES`.
    """
    found: dict[int | str, dict[str, Any]] = {}
    for code, status in [*((code, CODES[code][0]) for code in codes), *(also or {}).items()]:
        answer = found.setdefault(status, {"model": ErrorAnswer, "content": {"application/json": {"examples": {}}}})
        example = {"error": {"code": code, "message": CODES[code][1]}}
        answer["content"]["application/json"]["examples"][code] = {"value": example}
        answer["description"] = ", ".join(f"`{name}`" for name in answer["content"]["application/json"]["examples"])
    return found


def handle_faults(app: FastAPI) -> None:
    """Give every refusal, the framework's own included, the one shape."""
    app.add_exception_handler(ApiError, _api_error)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, _invalid)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, _framework)  # type: ignore[arg-type]
    app.add_exception_handler(Exception, _internal)


async def json_only(request: Request) -> None:
    """Dependency of routes that take JSON. Raises ApiError for another content type."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "wrong_content_type", CODES["wrong_content_type"][1])


async def _api_error(request: Request, error: ApiError) -> Response:
    headers = {"Retry-After": str(error.retry_after_s)} if error.retry_after_s else None
    return answer(request.url.path, error, headers)


async def _invalid(request: Request, error: RequestValidationError) -> Response:
    faults = "; ".join(f"{'.'.join(map(str, item['loc'][1:])) or 'body'}: {item['msg']}" for item in error.errors())
    return answer(request.url.path, ApiError(422, "invalid_request", faults))


async def _framework(request: Request, error: HTTPException) -> Response:
    code, where = _OF_STATUS.get(error.status_code, "invalid_request"), f"{request.method} {request.url.path[:200]}"
    told = {
        "unknown_route": f"{where}: no such route; /openapi.json lists them",
        "wrong_method": f"{where}: not with this method; the Allow header names those that go",
    }
    headers = dict(error.headers or {})
    if code == "wrong_method":  # Starlette names the methods of the path's first route only
        routes = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
        headers["Allow"] = ", ".join(sorted({method for route in routes for method in route.methods}))
    return answer(request.url.path, ApiError(error.status_code, code, told.get(code, str(error.detail))), headers)


async def _internal(request: Request, error: Exception) -> Response:
    return answer(request.url.path, ApiError(500, "internal_error", CODES["internal_error"][1]))


def answer(path: str, error: ApiError, headers: dict[str, str] | None = None) -> Response:
    """The error as this path's clients expect it; a body that was refused unread ends the connection."""
    if error.status in (408, 413, 431):
        headers = (headers or {}) | {"Connection": "close"}
    if path not in OPENAI_ROUTES:
        return JSONResponse(error.body(), error.status, headers)
    return JSONResponse(openai_error(error), 400 if error.status == 422 else error.status, headers)


def openai_error(error: ApiError) -> dict[str, Any]:
    """The error in the shape of the OpenAI API."""
    kind = {401: "authentication_error", 429: "rate_limit_error"}.get(error.status)
    kind = kind or ("server_error" if error.status >= 500 else "invalid_request_error")
    return {"error": {"message": str(error), "type": kind, "param": None, "code": error.code}}
