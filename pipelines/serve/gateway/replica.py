"""The gateway of this process, for routes and middleware that are not its methods, and what is common to middleware."""

from __future__ import annotations

from typing import Any

from ray import serve
from starlette.types import ASGIApp, Receive, Scope, Send


def gateway() -> Any:
    """The `Gateway` that this replica runs."""
    return serve.get_replica_context().servable_object


class Middleware:
    """Has `handle` for HTTP, and leaves the rest to the application."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (self.handle if scope["type"] == "http" else self.app)(scope, receive, send)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, passed on to `app`."""
        raise NotImplementedError
