"""The events of a search: kept in the order in which they come, and sent to readers with their numbers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from sse_starlette import EventSourceResponse

HEARTBEAT_S = 10.0
Event = dict[str, Any]  # with a `type`, see `POST /v1/search`


class EventLog:
    """Events, numbered from 1; every reader gets them all, at its own pace, also after the end.

    `Searching` bounds what is kept of a search.
    """

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.over = False
        self._change = asyncio.Event()  # each change has its own

    def add(self, event: Event) -> None:
        """Keep an event and wake the readers."""
        self.events.append(event)
        self._wake()

    def close(self) -> None:
        """Say that no event follows."""
        self.over = True
        self._wake()

    async def read(self, after: int = 0) -> AsyncGenerator[tuple[int, Event], None]:
        """Yield events with their numbers, from the one behind `after` to the end."""
        while after < len(self.events) or not self.over:
            if after == len(self.events):
                await self._change.wait()
            else:
                after += 1
                yield after, self.events[after - 1]

    def _wake(self) -> None:
        self._change.set()
        self._change = asyncio.Event()


async def numbered(events: AsyncGenerator[tuple[int, Event], None]) -> AsyncIterator[dict[str, str]]:
    """Yield the fields of server-sent events, behind a comment at once, and close `events`."""
    async with aclosing(events):
        yield {"comment": "a search"}  # proxies give up a connection without a byte
        async for number, event in events:
            yield {"id": str(number), "event": event["type"], "data": json.dumps(event, ensure_ascii=False)}


def server_sent(content: AsyncIterator[Any], headers: dict[str, str] | None = None) -> EventSourceResponse:
    """Return the response that sends fields of events, or texts as their data, and a comment now and then."""
    return EventSourceResponse(content, headers=headers, ping=HEARTBEAT_S, sep="\n")
