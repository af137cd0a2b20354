"""What the options of a Ray actor are, from what the configuration says of its role."""

from __future__ import annotations

from typing import Any

from vsr1.settings.parts import ActorResources, PlacedResources


def resources(need: ActorResources) -> dict[str, Any]:
    """Return the Ray options that reserve what an actor needs, on the nodes where it may be."""
    options = {"num_cpus": need.cpus, "num_gpus": need.gpus, "memory": int(need.memory_gib * 2**30)}
    return options | ({"label_selector": need.labels} if isinstance(need, PlacedResources) and need.labels else {})


def placed(need: PlacedResources) -> dict[str, Any]:
    """Return the options of `resources`, and in which order nodes are taken."""
    return resources(need) | {"scheduling_strategy": "SPREAD" if need.strategy == "spread" else "DEFAULT"}
