"""In front of Ray Serve's proxy: what it, and the HTTP server below it, would answer otherwise than HTTP says.

The proxy calls `middlewares`, which Ray's variable `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH` names, when it starts.
"""

from __future__ import annotations

import re
import sys
from typing import Any

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

REQUEST_ID = b"x-request-id"
_PLAIN_ID = re.compile(rb"[!-~]{1,128}")


def middlewares() -> list[Middleware]:
    """Return what Serve puts around its proxy."""
    return [Middleware(Front)]


class Front:
    """Gives an HTTP/1.0 client a stream that ends with its connection, and every request an id that can be logged.

    uvicorn (0.54) sends a body of unknown length in chunks, which HTTP/1.0 does not know (RFC 9112 6.1). Serve takes a
    client's X-Request-Id for its own, whatever is in it; one that is not up to 128 plain characters gets another.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = [
                (name, value) for name, value in scope["headers"] if name != REQUEST_ID or _PLAIN_ID.fullmatch(value)
            ]
            scope = {**scope, "headers": headers}
            cycle = getattr(send, "__self__", None)
            if scope["http_version"] == "1.0" and isinstance(cycle, RequestResponseCycle):
                send = _without_chunks(cycle)
        await self._app(scope, receive, send)


def _without_chunks(cycle: Any) -> Send:
    """Return what sends a response of uvicorn's; one of unknown length ends with the connection."""
    is_endless = False

    async def send(message: Message) -> None:
        nonlocal is_endless
        if message["type"] == "http.response.start":
            is_endless = not any(name.lower() == b"content-length" for name, _ in message["headers"])
            if is_endless:
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
                cycle.chunked_encoding, cycle.expected_content_length = False, sys.maxsize
        elif is_endless and not message.get("more_body", False):
            cycle.expected_content_length = len(message.get("body", b""))  # uvicorn compares them at the end
        await cycle.send(message)

    return send
