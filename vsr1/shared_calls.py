"""One call for all who want the same at one time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

Answer = TypeVar("Answer")


class SharedCalls(Generic[Answer]):
    """Lets callers who want the same at one time share one call."""

    def __init__(self) -> None:
        self._calls: dict[Hashable, asyncio.Future[Answer]] = {}

    async def answer(self, key: Hashable, call: Callable[[], Awaitable[Answer]]) -> Answer:
        """Return what the call gives, or raise its error; a caller who is cancelled leaves it to the others."""
        if key not in self._calls:
            self._calls[key] = asyncio.ensure_future(call())
            self._calls[key].add_done_callback(lambda _: self._calls.pop(key))
        return await asyncio.shield(self._calls[key])
