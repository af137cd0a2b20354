"""Searches that run in this gateway and those that ended a while ago, so that a reader can come back.

The events of a search are numbered from 1, kept, and end in exactly one `done` or `error`. Readers follow them at their
own pace: the search waits for none, and is cancelled when it has had no reader for the grace time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from contextvars import Context
from typing import Any

from pipelines.serve.gateway import metrics
from pipelines.serve.gateway.faults import CODES
from pipelines.serve.gateway.stream import ApiError, Event
from vsr1.settings.serving import ServeConfig

LEAST_GRACE_S = 1.0  # for the first reader to come


class SearchRun:
    """One search; cancelled when `grace_s` passes without a reader.

    Attributes:
        owner: name of the key that began it.
        failure: why it ended in `error`.
        began: Unix time in seconds.
    """

    def __init__(self, search_id: str, owner: str | None, grace_s: float) -> None:
        self.id, self.owner, self._grace_s = search_id, owner, grace_s
        self.began = int(time.time())
        self.events: list[Event] = []
        self.failure: ApiError | None = None
        self.over = False
        self.cancelled = False
        self._changed = asyncio.Condition()
        self._readers = 0
        self._lonely: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self, events: AsyncGenerator[Event, None], ended: Callable[[SearchRun], None]) -> None:
        # Serve cancels all that a request began when its reader goes away; in a context of its own the search stays.
        self._task = asyncio.create_task(self._play(events, ended), context=Context())

    async def first(self) -> None:
        """Wait for the first event. Raises its ApiError if that is a refusal."""
        await self._until(1)
        if self.failure and len(self.events) == 1:
            raise self.failure
        self._wait_for_reader(max(self._grace_s, LEAST_GRACE_S))

    async def result(self) -> dict[str, Any]:
        """The whole answer. A caller that goes away cancels the search. Raises the ApiError that it ended in."""
        try:
            async for _ in self.read():
                continue
        finally:
            self.cancel()
        if self.failure:
            raise self.failure
        result: dict[str, Any] = self.events[-1]["result"]
        return result

    async def read(self, after: int = 0) -> AsyncGenerator[tuple[int, Event], None]:
        """Events with their numbers, from the one behind `after` to the end of the search."""
        self._readers += 1
        if self._lonely:
            self._lonely.cancel()
        try:
            while not (self.over and after == len(self.events)):
                await self._until(after + 1)
                yield after + 1, self.events[after]
                after += 1
        finally:
            self._readers -= 1
            if not self._readers:
                self._wait_for_reader(self._grace_s)

    def cancel(self) -> None:
        """End the search, which frees its place in the engine; nothing happens when it is over."""
        if not self.over and self._task:
            self.cancelled = True
            self._task.cancel()

    def _wait_for_reader(self, seconds: float) -> None:
        if not self.over:
            self._lonely = asyncio.get_running_loop().call_later(seconds, self.cancel)

    async def _until(self, count: int) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.events) >= count)

    async def _play(self, events: AsyncGenerator[Event, None], ended: Callable[[SearchRun], None]) -> None:
        try:
            with metrics.searching() as seen:
                async with aclosing(events):
                    async for event in events:
                        seen()
                        await self._add(event)
                        if self.over:
                            break
        except ApiError as error:
            self.failure = error
        finally:
            if not self.over:
                code = "search_gone" if self.cancelled else "internal_error"
                self.failure = self.failure or ApiError(CODES[code][0], code, CODES[code][1])
                await self._add(self.failure.event())
            metrics.searched(self.events[-1], self.failure)
            ended(self)

    async def _add(self, event: Event) -> None:
        self.events.append(event)
        self.over = event["type"] in ("done", "error")
        async with self._changed:
            self._changed.notify_all()


class SearchRuns:
    """All searches of a gateway, for `serve.resume_keep_s` after their end, and `serve.resume_keep` at most."""

    def __init__(self, settings: ServeConfig) -> None:
        self._settings = settings
        self._runs: dict[str, SearchRun] = {}
        self._ended: list[str] = []  # oldest first

    async def begin(
        self, search_id: str, owner: str | None, events: AsyncGenerator[Event, None], resumable: bool
    ) -> SearchRun:
        """Start a search and wait for its first event. A caller that goes away while it waits cancels it.

        Raises:
            ApiError: it was refused.
        """
        run = SearchRun(search_id, owner, self._settings.resume_grace_s if resumable else 0.0)
        self._runs[run.id] = run
        run.start(events, self._keep if resumable else self._forget)
        try:
            await run.first()
        except asyncio.CancelledError:
            run.cancel()
            raise
        return run

    def get(self, search_id: str, owner: str | None) -> SearchRun:
        """A search of this owner.

        Raises:
            ApiError: there is none (a search of somebody else counts as none), or it was cancelled.
        """
        run = self._runs.get(search_id)
        code = "unknown_search" if run is None or run.owner != owner else "search_gone" if run.cancelled else ""
        if run is None or code:
            raise ApiError(CODES[code][0], code, CODES[code][1])
        return run

    def _keep(self, run: SearchRun) -> None:
        if run.failure and len(run.events) == 1:  # it was refused, and nobody knows its id
            self._forget(run)
            return
        self._ended.append(run.id)
        asyncio.get_running_loop().call_later(self._settings.resume_keep_s, self._drop, run.id)
        while len(self._ended) > self._settings.resume_keep:
            self._drop(self._ended[0])

    def _drop(self, search_id: str) -> None:
        if search_id in self._ended:
            self._ended.remove(search_id)
            del self._runs[search_id]

    def _forget(self, run: SearchRun) -> None:
        del self._runs[run.id]
