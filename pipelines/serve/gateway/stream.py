"""Events over HTTP: server-sent events with the numbers that a reader goes on from."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

HEARTBEAT_S = 10.0
Event = dict[str, Any]  # with a `type`, see `Gateway.search`


class ApiError(Exception):
    """An answer other than success."""

    def __init__(self, status: int, code: str, message: str, retry_after_s: int = 0) -> None:
        super().__init__(message)
        self.status, self.code, self.retry_after_s = status, code, retry_after_s

    def __reduce__(self) -> tuple[type[ApiError], tuple[int, str, str, int]]:
        return ApiError, (self.status, self.code, str(self), self.retry_after_s)

    def body(self) -> dict[str, Any]:
        return {"error": {"code": self.code, "message": str(self)}}

    def event(self) -> Event:
        return {"type": "error", **self.body()["error"]}


async def server_sent(events: AsyncGenerator[tuple[int, Event], None]) -> AsyncIterator[str]:
    """Server-sent events with their numbers; a comment now and then while nothing happens. Closes `events`."""
    coming: asyncio.Task[tuple[int, Event]] | None = None
    try:
        while True:
            coming = asyncio.ensure_future(anext(events))
            while not (await asyncio.wait([coming], timeout=HEARTBEAT_S))[0]:
                yield ": still searching\n\n"
            try:
                number, event = coming.result()
            except StopAsyncIteration:
                return
            yield f"id: {number}\nevent: {event['type']}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n"
    finally:
        if coming is not None:
            coming.cancel()
            await asyncio.wait([coming])
        await events.aclose()
