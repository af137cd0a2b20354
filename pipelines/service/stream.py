"""Events over HTTP: a numbered stream that always ends in `done` or `error`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

HEARTBEAT_S = 10.0


class ApiError(Exception):
    """An answer other than success."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code

    def body(self) -> dict[str, Any]:
        return {"error": {"code": self.code, "message": str(self)}}


async def server_sent(events: AsyncGenerator[dict[str, Any], None]) -> AsyncIterator[str]:
    """Server-sent events with numbers; a comment now and then while nothing happens, and always an end."""
    number = 0
    coming: asyncio.Task[Any] = asyncio.ensure_future(anext(events))
    try:
        while True:
            done, _ = await asyncio.wait([coming], timeout=HEARTBEAT_S)
            if not done:
                yield ": still searching\n\n"
                continue
            try:
                event = coming.result()
            except StopAsyncIteration:
                return
            except ApiError as error:
                event = {"type": "error", **error.body()["error"]}
            number += 1
            yield f"id: {number}\nevent: {event['type']}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n"
            if event["type"] in ("done", "error"):
                return
            coming = asyncio.ensure_future(anext(events))
    finally:
        coming.cancel()
        await events.aclose()
