"""The gate in front of weights: many requests are inside at one time, or one change of the weights is.

A change waits until every request inside has left, while newcomers wait for the change. If it fails, nobody knows which
weights are there: the gate stays shut and refuses everyone, until a later change succeeds.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class PushError(RuntimeError):
    """New weights that did not arrive whole; the message names every tensor, or the engine that lacks them."""


class MixedWeightsError(RuntimeError):
    """A request to an engine whose last push failed."""


class Gate:
    """Belongs to one event loop; no method blocks it."""

    def __init__(self) -> None:
        self.inside = 0  # requests
        self._failure: BaseException | None = None  # of the last change
        self._change = asyncio.Lock()
        self._empty, self._settled = asyncio.Event(), asyncio.Event()  # no request is inside; no change waits or runs
        self._empty.set()
        self._settled.set()

    @asynccontextmanager
    async def enter(self) -> AsyncIterator[None]:
        """Wait for changes to end, then hold the weights as they are. Leaving never waits, so it cannot be cancelled.

        Raises:
            MixedWeightsError: the last change failed.
        """
        while not self._settled.is_set():  # again, if the next change began before this request woke up
            await self._settled.wait()
        if self._failure is not None:
            raise MixedWeightsError(
                "the engine holds a mixture of weights, because the last push failed; push all weights again, or "
                f"restart the engine: {type(self._failure).__name__}: {self._failure}"
            )
        self.inside += 1
        self._empty.clear()
        try:
            yield
        finally:
            self.inside -= 1
            if not self.inside:
                self._empty.set()

    @asynccontextmanager
    async def shut(self) -> AsyncIterator[None]:
        """Change the weights once no request is inside; one change at a time. An error leaves the gate shut."""
        async with self._change:
            self._settled.clear()
            try:
                await self._empty.wait()  # whoever is cancelled here has changed nothing
                try:
                    yield
                except BaseException as failure:
                    self._failure = failure
                    raise
                self._failure = None
            finally:
                self._settled.set()
