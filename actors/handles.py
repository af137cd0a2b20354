"""How the handle of a Ray actor is typed: as a protocol whose methods have `.remote`.

The stubs that Ray ships type a handle as the plain class, whose methods have none.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, ParamSpec, Protocol, Self, TypeVar

RETRIES = 3  # of a question that may be asked twice, to an actor that Ray starts again
Parameters = ParamSpec("Parameters")
Answer = TypeVar("Answer", covariant=True)


class Remote(Protocol[Parameters, Answer]):
    """A method of an actor; what `remote` returns can be awaited, or given to `ray.get`."""

    def remote(self, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Awaitable[Answer]: ...

    def options(self, **options: Any) -> Self: ...
