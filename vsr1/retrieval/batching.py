"""Gather items that arrive close together into one call; every item gets its own result or error, exactly once.

One batch runs at a time, so that under load the next batch grows while the current one runs.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Use it from one event loop.

    Args:
        run: answers a batch, one result or exception for each item in order; if it raises, every item gets the error.
        max_batch: most items in one call.
        wait_s: seconds a batch waits for more items before it runs.
    """

    def __init__(
        self, run: Callable[[list[Item]], Awaitable[list[Result | BaseException]]], *, max_batch: int, wait_s: float
    ) -> None:
        self._run = run
        self._max_batch = max_batch
        self._wait_s = wait_s
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._full = asyncio.Event()
        self._draining: asyncio.Task[None] | None = None

    async def submit(self, item: Item) -> Result:
        """The item's result; an item whose caller gave up before its batch began is not run."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if len(self._waiting) >= self._max_batch:
            self._full.set()
        if self._draining is None or self._draining.done():
            self._draining = asyncio.create_task(self._drain())
        return await future

    async def _drain(self) -> None:
        while self._waiting:
            if len(self._waiting) < self._max_batch:
                self._full.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._full.wait(), self._wait_s)
            taken = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._max_batch))]
            batch = [(item, future) for item, future in taken if not future.done()]
            if batch:
                [answer] = await asyncio.gather(self._run([item for item, _ in batch]), return_exceptions=True)
                _settle(answer, [future for _, future in batch])


def _settle(answer: list[Result | BaseException] | BaseException, futures: list[asyncio.Future[Result]]) -> None:
    outcomes = [answer] * len(futures) if isinstance(answer, BaseException) else answer
    for future, outcome in zip(futures, outcomes, strict=True):
        if future.done():
            continue
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
