"""Which weights a model's agents have, and how they change: never within a search."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict


class Weights(BaseModel):
    """What Serve keeps as `user_config` of a model's deployment and gives to each replica, also to later ones."""

    model_config = ConfigDict(extra="forbid")

    checkpoint: Path
    version: int = 0


class Turnstile:
    """Lets in many searches at one time, or one change, which waits for those inside while newcomers wait for it."""

    def __init__(self) -> None:
        self.inside = 0
        self._open, self._empty = asyncio.Event(), asyncio.Event()
        self._open.set()
        self._empty.set()

    @asynccontextmanager
    async def search(self) -> AsyncIterator[None]:
        while not self._open.is_set():  # again, if the next change began before this search woke up
            await self._open.wait()
        self.inside += 1
        self._empty.clear()
        try:
            yield
        finally:
            self.inside -= 1
            if not self.inside:
                self._empty.set()

    @asynccontextmanager
    async def change(self) -> AsyncIterator[None]:
        """One at a time; Serve calls for no second one before the first is over."""
        self._open.clear()
        try:
            await self._empty.wait()
            yield
        finally:
            self._open.set()
