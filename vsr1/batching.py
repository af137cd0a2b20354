"""Gathers items that arrive close together into one call; every item gets its own result or error, exactly once.

An item that finds nothing running is run at once. Two batches run at a time, or as many as are asked for, so that one
can travel while the other is computed, and the next grows meanwhile.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

AT_ONCE = 2


class Batcher(Generic[Item, Result]):
    """Use it from one event loop.

    Args:
        run: answers a batch, one result or exception for each item in order; if it raises, every item gets the error.
        max_batch: most items in one call.
        at_once: batches that run at a time.
    """

    def __init__(
        self,
        run: Callable[[list[Item]], Awaitable[list[Result | BaseException]]],
        *,
        max_batch: int,
        at_once: int = AT_ONCE,
    ) -> None:
        self._run = run
        self._max_batch = max_batch
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._slots = asyncio.Semaphore(at_once)
        self._tasks: set[asyncio.Task[None]] = set()  # keeps them alive
        self._draining: asyncio.Task[None] | None = None

    async def submit(self, item: Item) -> Result:
        """Return the item's result; an item whose caller gave up before its batch began is not run."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._draining is None or self._draining.done():
            self._draining = asyncio.create_task(self._drain())
        return await future

    async def _drain(self) -> None:
        while self._waiting:
            await self._slots.acquire()
            first = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._max_batch))]
            batch = [(item, future) for item, future in first if not future.done()]
            if not batch:
                self._slots.release()
                continue
            task = asyncio.create_task(self._answer(batch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, batch: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        [answer] = await asyncio.gather(self._run([item for item, _ in batch]), return_exceptions=True)
        self._slots.release()
        outcomes = [answer] * len(batch) if isinstance(answer, BaseException) else answer
        for (_, future), outcome in zip(batch, outcomes, strict=True):
            if future.done():  # its caller gave up
                continue
            if isinstance(outcome, BaseException):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)
