"""Nodes that join a cluster or go are events of the run, once each."""

from typing import Any

import pytest

from pipelines.stage.nodes import NodeEvents


def node(name: str, alive: bool = True, reason: str = "") -> dict[str, Any]:
    return {
        "NodeID": name * 28,
        "Alive": alive,
        "NodeManagerAddress": f"10.0.0.{ord(name) - 96}",
        "Labels": {"pool": "spot", "ray.io/node-id": name},
        "DeathReasonMessage": reason,
    }


def test_nodes_that_join_and_go_are_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[dict[str, Any]] = []
    there: list[dict[str, Any]] = [node("a")]
    monkeypatch.setattr("ray.nodes", lambda: there)
    nodes = NodeEvents(lambda kind, **fields: events.append({"kind": kind, **fields}))
    nodes.look()
    assert events == [], "who is there at first is no news"
    there.append(node("b"))
    nodes.look()
    nodes.look()
    labels = {"pool": "spot"}
    assert events == [{"kind": "node joined", "node": "b" * 28, "address": "10.0.0.2", "labels": labels}]
    there[1] = node("b", alive=False, reason="health check failed")
    nodes.look()
    nodes.look()
    gone = {"kind": "node gone", "node": "b" * 28, "address": "10.0.0.2", "labels": labels}
    assert events[1:] == [gone | {"reason": "health check failed"}]
