"""Limits on what comes in, before anything reads it: size of headers and body, and how long a body may take."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.serve.gateway.answers import answer
from pipelines.serve.gateway.faults import ApiError
from vsr1.settings.serving import ServeConfig

HEADER_BYTES = 32 * 1024


class Guard:
    """Middleware that refuses what is too large or too slow, and forbids browsers to guess content types."""

    def __init__(self, app: ASGIApp, settings: ServeConfig) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def plain(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).setdefault("X-Content-Type-Options", "nosniff")
            await send(message)

        most = None if _is_upload(scope) else self._settings.body_limit_kib * 1024  # `Intake` has limits of its own
        if refusal := _refusal(scope, most):
            return await answer(scope["path"], refusal)(scope, receive, plain)
        await self._app(scope, _limited(receive, most, self._settings.body_limit_s) if most else receive, plain)


def _is_upload(scope: Scope) -> bool:
    kind = Headers(scope=scope).get("content-type", "")
    is_file = kind.startswith(("application/octet-stream", "video/"))
    return is_file and (scope["method"], scope["path"]) == ("POST", "/v1/videos")


def _refusal(scope: Scope, most: int | None) -> ApiError | None:
    """Return what is wrong with the size that a request's head tells; `most` bytes may be in the body."""
    if sum(len(name) + len(value) for name, value in scope["headers"]) > HEADER_BYTES:
        return ApiError("headers_too_large")
    length = Headers(scope=scope).get("content-length", "0")
    return ApiError("body_too_large", _limit(most)) if most and length.isdecimal() and int(length) > most else None


def _limited(receive: Receive, most: int, seconds: float) -> Receive:
    """Return `receive` with a count of what the body brings, and how long it takes."""
    size, complete, deadline = 0, False, asyncio.get_running_loop().time() + seconds

    async def limited() -> Message:
        nonlocal size, complete
        if complete:
            return await receive()
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError:
            raise HTTPException(408, f"the body did not arrive within {seconds:g} s; send it faster") from None
        size += len(message.get("body", b""))
        complete = not message.get("more_body", False)
        if size > most:
            raise HTTPException(413, _limit(most))
        return message

    return limited


def _limit(most: int) -> str:
    return f"the body is larger than {most // 1024} KiB, see serve.body_limit_kib; send less"
