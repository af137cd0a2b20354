"""Limits on what comes in, before anything reads it: size of headers and body, and how long a body may take.

Also the one place that knows other sites: `serve.cors_origins`, none by default.
"""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.serve.gateway.faults import answer
from pipelines.serve.gateway.replica import Middleware, gateway
from pipelines.serve.gateway.stream import ApiError

HEADER_BYTES = 32 * 1024


class Guard(Middleware):
    """Refuses what is too large or too slow, and forbids browsers to guess content types."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        settings = gateway().settings

        async def plain(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).setdefault("X-Content-Type-Options", "nosniff")
            await send(message)

        most = None if _is_upload(scope) else settings.body_limit_kib * 1024  # `Intake` has limits of its own
        if refusal := _too_large(scope, most):
            await answer(scope["path"], refusal)(scope, receive, plain)
            return
        await self.app(scope, _limited(receive, most, settings.body_limit_s) if most else receive, plain)


class Cors(Middleware):
    """Lets the scripts of `serve.cors_origins` read answers."""

    _allowing: ASGIApp | None = None

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not gateway().settings.cors_origins:
            await self.app(scope, receive, send)
            return
        self._allowing = self._allowing or CORSMiddleware(
            self.app,
            allow_origins=gateway().settings.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "X-API-Key", "Content-Type", "Last-Event-ID"],
            expose_headers=["X-Search-Id", "Retry-After"],
        )
        await self._allowing(scope, receive, send)


def _is_upload(scope: Scope) -> bool:
    kind = Headers(scope=scope).get("content-type", "")
    is_file = kind.startswith(("application/octet-stream", "video/"))
    return is_file and (scope["method"], scope["path"]) == ("POST", "/v1/videos")


def _too_large(scope: Scope, most: int | None) -> ApiError | None:
    if sum(len(name) + len(value) for name, value in scope["headers"]) > HEADER_BYTES:
        return ApiError(431, "headers_too_large", f"the headers are larger than {HEADER_BYTES // 1024} KiB; send less")
    length = Headers(scope=scope).get("content-length", "0")
    return ApiError(413, "body_too_large", _told(most)) if most and length.isdecimal() and int(length) > most else None


def _limited(receive: Receive, most: int, seconds: float) -> Receive:
    """Counts what a body brings, and how long it takes."""
    taken, complete, deadline = 0, False, asyncio.get_running_loop().time() + seconds

    async def limited() -> Message:
        nonlocal taken, complete
        if complete:
            return await receive()
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError:
            raise HTTPException(408, f"the body did not arrive within {seconds:g} s; send it faster") from None
        taken += len(message.get("body", b""))
        complete = not message.get("more_body", False)
        if taken > most:
            raise HTTPException(413, _told(most))
        return message

    return limited


def _told(most: int) -> str:
    return f"the body is larger than {most // 1024} KiB, see serve.body_limit_kib; send less"
