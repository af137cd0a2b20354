"""`ray up cluster/ray-up.yaml`: every key is one that Ray reads, and the nodes are those of the recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import ray
import yaml
from misspelt import misspelt

from vsr1.config import load_config

REPOSITORY = Path(__file__).parents[2]
RECIPE = load_config(REPOSITORY / "configs/recipes/spot.yaml")
GIB = 2**30
DRAIN = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
UP = REPOSITORY / "cluster/ray-up.yaml"
MACHINES = {"m7i.xlarge": (4, 16), "p5.48xlarge": (192, 2048), "p5.4xlarge": (16, 256), "r7i.4xlarge": (16, 128)}


def up_faults(values: dict[str, Any]) -> list[str]:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text(encoding="utf-8"))
    names = {"type", "region", "cache_stopped_nodes"}
    lines = [error.message for error in jsonschema_rs.validator_for(schema).iter_errors(values)]
    lines += [f"provider: unknown {key}" for key in values.get("provider", {}).keys() - names]
    types = values.get("available_node_types", {})
    lines += ["no such head_node_type"] * (values.get("head_node_type") not in types)
    for name, one in types.items():
        if name != values.get("head_node_type") and name not in RECIPE.cluster.nodes:
            lines.append(f"unknown group {name}")
        resources = {"CPU", "GPU", "memory", "object_store_memory"}
        lines += [f"{name}: unknown {key}" for key in one.get("resources", {}).keys() - resources]
        lines += [f"{name}: unknown label {key}" for key in one.get("labels", {}).keys() - {"pool"}]
        known = {"InstanceType", "InstanceMarketOptions"}
        lines += [f"{name}: unknown {key}" for key in one.get("node_config", {}).keys() - known]
    return lines


def test_ray_up_has_the_nodes_of_the_recipe_and_no_key_that_could_be_another() -> None:
    values = yaml.safe_load(UP.read_text(encoding="utf-8"))
    assert up_faults(values) == []
    for path, changed in misspelt(values):
        if "InstanceMarketOptions." in path or ".file_mounts." in path:
            continue  # of the provider, and paths
        assert up_faults(changed), f"{path} misspelt was not seen"
    for name, node in RECIPE.cluster.nodes.items():
        one = values["available_node_types"][name]
        sizes = {"CPU": node.cpus, "GPU": node.gpus, "memory": node.memory_gib * GIB}
        store = {"object_store_memory": RECIPE.cluster.object_store_gib * GIB}
        assert one["resources"] == {key: size for key, size in (sizes | store).items() if size}
        assert (one["labels"], one["max_workers"]) == (node.labels, node.count)
    assert values["max_workers"] == sum(node.count for node in RECIPE.cluster.nodes.values())
    for one in values["available_node_types"].values():
        cpus, memory_gib = MACHINES[one["node_config"]["InstanceType"]]
        sizes = one["resources"]
        assert sizes["CPU"] < cpus and sizes.get("memory", 0) + sizes["object_store_memory"] < memory_gib * GIB
    roles = [getattr(RECIPE.cluster, role) for role in ("learner", "rollout", "retrieval", "shard", "reward")]
    groups = [one for one in values["available_node_types"].values() if "memory" in one["resources"]]
    for role in roles:  # Ray's autoscaler starts a node for an actor only where the group declares all that it asks for
        fitting = [one["resources"]["memory"] for one in groups if role.labels.items() <= one["labels"].items()]
        assert fitting and role.memory_gib * GIB <= max(fitting)
    drain = f"{DRAIN}={RECIPE.fleet.drain_s:g} "
    assert drain in values["worker_start_ray_commands"][1]
