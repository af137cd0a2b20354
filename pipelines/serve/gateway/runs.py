"""Searches that run in this gateway and those that ended a while ago, so that a reader can come back.

The events of a search are numbered from 1, kept, and end in exactly one `done` or `error`. Readers follow them at their
own pace: the search waits for none, and is cancelled when it has had no reader for the grace time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from contextvars import Context
from functools import partial
from typing import Any

from pipelines.serve.gateway import metrics
from pipelines.serve.gateway.events import Event, EventLog
from pipelines.serve.gateway.faults import ApiError
from vsr1.settings.serving import ServeConfig

LEAST_GRACE_S = 1.0  # for the first reader to come
REFUSAL_S = 1.0  # so long a search may be refused with a status of its own; then its stream begins


class SearchRun(EventLog):
    """One search and its events; cancelled when `grace_s` passes without a reader.

    Attributes:
        owner: name of the key that began it.
        failure: why it ended in `error`.
        began: Unix time in seconds.
    """

    def __init__(self, search_id: str, owner: str, grace_s: float) -> None:
        super().__init__()
        self.id, self.owner, self.began, self._grace_s = search_id, owner, int(time.time()), grace_s
        self.failure: ApiError | None = None
        self.cancelled, self._readers = False, 0
        self._lonely: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self, events: AsyncGenerator[Event, None], ended: Callable[[SearchRun], None]) -> None:
        """Play a search that tells these events; `ended` is called behind the last."""
        # Serve cancels all that a request began when its reader goes away; in a context of its own the search stays.
        self._task = asyncio.create_task(self._play(events, ended), context=Context())

    async def first(self) -> None:
        """Wait for the first event, but not for a place in an agent. Raise the ApiError of a refusal."""
        with suppress(TimeoutError):
            async with asyncio.timeout(REFUSAL_S):
                await anext(super().read())
        if self.failure and len(self.events) == 1:
            raise self.failure
        self._wait_for_reader(max(self._grace_s, LEAST_GRACE_S))

    async def result(self) -> dict[str, Any]:
        """Return the whole answer. A caller that goes away cancels the search. Raise the ApiError that it ended in."""
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
        """Yield events as `EventLog.read`, as one of the readers that keep the search going."""
        self._readers += 1
        if self._lonely:
            self._lonely.cancel()
        try:
            async for numbered in super().read(after):
                yield numbered
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

    async def _play(self, events: AsyncGenerator[Event, None], ended: Callable[[SearchRun], None]) -> None:
        try:
            with metrics.searching() as runs:
                async with aclosing(events):
                    async for event in events:
                        if not self.events:
                            runs()
                        self.add(event)
                        if event["type"] == "done":
                            self.close()
                            break
        except ApiError as error:
            self.failure = error
        finally:
            if not self.over:
                self.failure = self.failure or ApiError("search_gone" if self.cancelled else "internal_error")
                self.add({"type": "error", **self.failure.body()["error"]})
                self.close()
            metrics.searched(self.events[-1], self.failure)
            ended(self)


class SearchRuns:
    """All searches of a gateway, for `serve.resume_keep_s` after their end, and `serve.resume_keep` at most."""

    def __init__(self, settings: ServeConfig) -> None:
        self._settings, self.is_stopping = settings, False
        self._running: dict[str, SearchRun] = {}
        self._ended: dict[str, SearchRun] = {}  # oldest first

    async def begin(
        self, search_id: str, owner: str, events: AsyncGenerator[Event, None], resumable: bool
    ) -> SearchRun:
        """Start a search and see whether it is refused. A caller that goes away meanwhile cancels it.

        Args:
            resumable: it goes on for `serve.resume_grace_s` without a reader.

        Raises:
            ApiError: it was refused.
        """
        if self.is_stopping:
            raise ApiError("stopping", retry_after_s=60)
        run = SearchRun(search_id, owner, self._settings.resume_grace_s if resumable else 0.0)
        self._running[run.id] = run
        run.start(events, partial(self._end, resumable))
        try:
            await run.first()
        except asyncio.CancelledError:
            run.cancel()
            raise
        except ApiError:
            self._ended.pop(run.id, None)  # nobody knows its id
            raise
        return run

    async def drain(self) -> None:
        """Take no new searches, and return when those that were let in are over."""
        self.is_stopping = True
        while self._running:
            await asyncio.sleep(0.1)

    def get(self, search_id: str, owner: str) -> SearchRun:
        """Return a search of this owner.

        Raises:
            ApiError: there is none (a search of somebody else counts as none), or it was cancelled.
        """
        run = self._running.get(search_id) or self._ended.get(search_id)
        if run is None or run.owner != owner:
            raise ApiError("unknown_search")
        if run.cancelled:
            raise ApiError("search_gone")
        return run

    def _end(self, resumable: bool, run: SearchRun) -> None:
        del self._running[run.id]
        if resumable:
            self._ended[run.id] = run
            asyncio.get_running_loop().call_later(self._settings.resume_keep_s, self._ended.pop, run.id, None)
            while len(self._ended) > self._settings.resume_keep:
                del self._ended[next(iter(self._ended))]
