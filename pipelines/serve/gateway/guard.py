"""What comes in is judged before anything reads it: whom it asks, kind and size of its body, how long that takes."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.serve.gateway.answers import answer
from pipelines.serve.gateway.faults import ApiError
from vsr1.settings.serving import ServeConfig

HEADER_BYTES = 32 * 1024
VIDEOS = "/v1/videos"  # takes files too, for which `Intake` has limits of its own
WITH_BODY = ("/v1/search", "/v1/chat/completions", "/retrieve", VIDEOS)  # of POST
JSON = "application/json"
_HOST = re.compile(r"(?:\[(?P<literal>[^\[\]]*)\]|(?P<name>[^:\[\]]*))(?::[0-9]*)?")


class Guard:
    """Middleware that refuses what is not for this server, of another kind, too large or too slow.

    It forbids browsers to guess content types. A page of another site can send neither JSON nor a file without this
    server's leave, so forms are not taken; and where there are no keys, a name that its owner lets lead to this machine
    is not answered (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, settings: ServeConfig) -> None:
        self._app, self._settings = app, settings
        names = ("", "localhost", socket.gethostname(), *settings.hosts)
        self._names = None if settings.key_file else {name.lower() for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def plain(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).setdefault("X-Content-Type-Options", "nosniff")
            await send(message)

        headers, is_post = Headers(scope=scope), scope["method"] == "POST"
        is_file = is_post and scope["path"] == VIDEOS and is_video(media_type(headers))
        most = None if is_file else self._settings.body_limit_kib * 1024
        try:
            self._check(scope, headers, most)
        except ApiError as refusal:
            return await answer(scope["path"], refusal)(scope, receive, plain)
        await self._app(scope, _limited(receive, most, self._settings.body_limit_s) if most else receive, plain)

    def _check(self, scope: Scope, headers: Headers, most: int | None) -> None:
        """Raise ApiError for what the head of a request tells; `most` bytes may be in a body, None for a file's."""
        if sum(len(name) + len(value) for name, value in scope["headers"]) > HEADER_BYTES:
            raise ApiError("headers_too_large")
        host = headers.get("host", "")
        if self._names is not None and not _is_own(host, self._names):
            message = f"this server does not answer for {host!r}; name it in serve.hosts"
            raise ApiError("foreign_host", message)
        if most is None:
            return
        if scope["method"] == "POST" and scope["path"] in WITH_BODY and media_type(headers) != JSON:
            also = " and a file as application/octet-stream or video/*" if scope["path"] == VIDEOS else ""
            raise ApiError("wrong_content_type", f"send JSON as application/json{also}")
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > most:
            raise ApiError("body_too_large", _limit(most))


def media_type(headers: Mapping[str, str]) -> str:
    """Return the content type of a body without its parameters, in small letters; "" where there is none."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def is_video(kind: str) -> bool:
    """Return whether a body of this media type is taken as the file of a video."""
    return kind == "application/octet-stream" or kind.startswith("video/")


def _is_own(host: str, names: set[str]) -> bool:
    """Return whether a Host header has one of the names, or an address, which no name can be made to lead to."""
    parts = _HOST.fullmatch(host)
    if parts is None:
        return False
    name = (parts["literal"] or parts["name"] or "").rstrip(".").lower()
    try:
        return name in names or name.endswith(".localhost") or bool(ipaddress.ip_address(name))
    except ValueError:
        return False


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
