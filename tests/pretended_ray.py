"""Actors in this process, for tests of what a driver does with them: no process starts, a kill costs nothing.

A stream goes on by one item when it is asked, and which of the pending ones `wait` names is drawn from a seed: every
order of events that a cluster may bring can come, and comes again with the same seed. What goes in and out is pickled,
as Ray does.
"""

from __future__ import annotations

import asyncio
import inspect
import pickle
import random
from typing import Any

import pytest
import ray


class Reference:
    """An answer, or the error instead of it."""

    def __init__(self, value: Any = None, error: BaseException | None = None) -> None:
        self.value, self.error = value, error


class Stream:
    """The items of an asynchronous generator of an actor."""

    def __init__(self, ray_: PretendedRay, handle: Handle, items: Any) -> None:
        self._ray, self.handle, self._items = ray_, handle, items

    def __next__(self) -> Reference:
        if self.handle.is_dead:
            return Reference(error=ray.exceptions.ActorDiedError())
        try:
            return self._ray.answer(self._items.__anext__)
        except BaseException as end:  # of its process, as no error of Python's is
            if isinstance(end, KeyboardInterrupt):
                raise
            self.handle.is_dead = True
            return Reference(error=ray.exceptions.ActorDiedError())


class Handle:
    """A handle of an actor: each method is called with `.remote`."""

    def __init__(self, ray_: PretendedRay, actor: Any) -> None:
        self._ray, self._actor, self.is_dead = ray_, actor, False
        self.deaths = 0  # that it dies at its next calls, and is there again

    def __getattr__(self, name: str) -> Any:
        return Method(self._ray, self, getattr(self._actor, name))


class Method:
    def __init__(self, ray_: PretendedRay, handle: Handle, call: Any) -> None:
        self._ray, self._handle, self._call = ray_, handle, call

    def remote(self, *arguments: Any) -> Any:
        arguments = pickle.loads(pickle.dumps(arguments))
        if inspect.isasyncgenfunction(self._call):
            return Stream(self._ray, self._handle, self._call(*arguments))
        self._handle.deaths -= 1
        if self._handle.is_dead:
            return Reference(error=ray.exceptions.ActorDiedError())
        if self._handle.deaths >= 0:
            return Reference(error=ray.exceptions.ActorUnavailableError("it starts again", None))
        return self._ray.answer(lambda: self._call(*arguments))


class PretendedRay:
    """Takes the place of `ray.wait`, `ray.get`, `ray.cancel` and `ray.kill` while a test runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seed: int = 0) -> None:
        self.draw, self._loop = random.Random(seed), asyncio.new_event_loop()
        self.cancelled = 0
        for name in ("wait", "get", "cancel", "kill"):
            monkeypatch.setattr(ray, name, getattr(self, name))

    def actor(self, actor: Any) -> Any:
        return Handle(self, actor)

    def answer(self, call: Any) -> Reference:
        """Run a method, to its end or the next item."""
        try:
            value = call()
            if inspect.isawaitable(value):
                value = self._loop.run_until_complete(value)
            return Reference(pickle.loads(pickle.dumps(value)))
        except Exception as error:
            return Reference(error=ray.exceptions.RayTaskError("call", "", error))

    def wait(self, references: list[Any], num_returns: int = 1, timeout: float | None = None) -> tuple[Any, Any]:
        """Return one reference, drawn, and all others of the actors that are dead."""
        chosen = self.draw.choice(references)
        ready = [one for one in references if one is chosen or (isinstance(one, Stream) and one.handle.is_dead)]
        return ready, [one for one in references if one not in ready]

    def get(self, reference: Any, timeout: float | None = None) -> Any:
        if isinstance(reference, list):
            return [self.get(one) for one in reference]
        if reference.error is not None:
            raise reference.error
        return reference.value

    def cancel(self, reference: Any) -> None:
        self.cancelled += 1

    def kill(self, handle: Any, no_restart: bool = True) -> None:
        handle.is_dead = True
