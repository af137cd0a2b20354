"""How the handle of a Ray actor is typed, as a protocol whose methods have `.remote`, and what its answers are.

The stubs that Ray ships type a handle as the plain class, whose methods have none.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from typing import Any, ParamSpec, Protocol, Self, TypeVar

import ray

RETRIES = 3  # of a question that may be asked twice, to an actor that Ray starts again
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


def arrived(references: Iterable[Any]) -> list[Any]:
    """Return those of the references whose answers are there now."""
    pending = list(references)
    return ray.wait(pending, num_returns=len(pending), timeout=0)[0] if pending else []
