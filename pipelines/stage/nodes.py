"""The nodes of the cluster that a stage runs on, as events: who has joined, and who is gone and why."""

from __future__ import annotations

import ray

from vsr1.runs.events import WriteEvent


class NodeEvents:
    """Call `look` now and then; the nodes that are there at first are no news."""

    def __init__(self, write: WriteEvent) -> None:
        self._write = write
        self._alive: set[str] | None = None

    def look(self) -> dict[str, str]:
        """Write an event for each node that has joined or gone since the last look.

        Returns:
            of each that is gone, by id, why.
        """
        nodes = {node["NodeID"]: node for node in ray.nodes()}
        alive = {name for name, node in nodes.items() if node["Alive"]}
        before = alive if self._alive is None else self._alive
        gone: dict[str, str] = {}
        for name in sorted(alive ^ before):
            node = nodes.get(name, {})
            labels = {key: value for key, value in (node.get("Labels") or {}).items() if not key.startswith("ray.io/")}
            fields = {"node": name, "address": node.get("NodeManagerAddress", ""), "labels": labels}
            if name in alive:
                self._write("node joined", **fields)
            else:
                reason = node.get("DeathReasonMessage", "")
                self._write("node gone", reason=reason, **fields)
                gone[name] = f"its node {fields['address']} is gone ({reason})"
        self._alive = alive
        return gone
