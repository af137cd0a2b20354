"""The gateway of this process, for routes and middleware that are not its methods."""

from __future__ import annotations

from typing import Any

from ray import serve


def gateway() -> Any:
    """The `Gateway` that this replica runs."""
    return serve.get_replica_context().servable_object
