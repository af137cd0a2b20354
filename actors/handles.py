"""How the handle of a Ray actor is typed, as a protocol whose methods have `.remote`, and what its answers are.

The stubs that Ray ships type a handle as the plain class, whose methods have none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from typing import Any, ParamSpec, Protocol, Self, TypeVar

import ray

RETRIES = 3  # of a question that may be asked twice, to an actor that Ray starts again
PAUSE_S = 0.5  # before it is asked once more
Parameters = ParamSpec("Parameters")
Answer = TypeVar("Answer", covariant=True)


class Remote(Protocol[Parameters, Answer]):
    """A method of an actor; what `remote` returns can be awaited, or given to `ray.get`."""

    def remote(self, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Awaitable[Answer]: ...

    def options(self, **options: Any) -> Self: ...


async def answer_of(reference: Awaitable[Any]) -> Any:
    """Return an answer of an actor, or raise what it raised itself, without what Ray puts around it."""
    try:
        return await reference
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error


async def answer_when_back(method: Remote[..., Any], *arguments: Any) -> Any:
    """Return an answer of an actor that Ray starts again, however long that takes; asking twice must do no harm.

    Until Ray gives a node up that is gone, after a minute by default, it fails each question to an actor there. Who
    waits here is ended from outside: an episode by its deadline, a stage by its watch (`fleet.return_s`).
    """
    while True:
        try:
            return await method.options(max_task_retries=RETRIES).remote(*arguments)
        except ray.exceptions.ActorUnavailableError:
            await asyncio.sleep(PAUSE_S)


def unordered(actor: type, **options: Any) -> Any:
    """Return the Ray actor of a class whose calls may run in any order, as those of a caller who may be cancelled.

    An actor without threads keeps to the order in which a caller made its calls. One that is cancelled before it is
    sent leaves a gap, for which such an actor waits 30 s, and then fails all that came after it.
    """
    return ray.remote(allow_out_of_order_execution=True, **options)(actor)  # Any: the stubs give a handle no `.remote`


def arrived(references: Iterable[Any]) -> list[Any]:
    """Return those of the references whose answers are there now."""
    pending = list(references)
    return ray.wait(pending, num_returns=len(pending), timeout=0)[0] if pending else []
