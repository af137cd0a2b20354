"""Actors and placement groups go to the nodes that the labels of their role name; all nodes of a job are looked at."""

import sys
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cloudpickle import register_pickle_by_value
from ray.cluster_utils import Cluster
from ray.util import placement_group_table, remove_placement_group
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.places import placed, resources
from pipelines.machine.nodes import capacity
from pipelines.submit.nodes import faults, views_of_nodes
from vsr1.config import load_config
from vsr1.settings.parts import PlacedResources

REPOSITORY = Path(__file__).parents[3]
register_pickle_by_value(sys.modules[__name__])  # actors cannot import this file


@ray.remote
class Where:
    def node(self) -> str:
        return str(ray.get_runtime_context().get_node_id())


@ray.remote
class OnGpus:
    def gpus(self) -> list[int]:
        return list(ray.get_gpu_ids())


@pytest.fixture
def far(nodes: list[str]) -> str:
    [node] = [node["NodeID"] for node in ray.nodes() if node["Labels"].get("pool") == "far"]
    return str(node)


@pytest.mark.parametrize(("wanted", "is_far"), [("far", True), ("!far", False), ("in(far,near)", True)])
@pytest.mark.parametrize("strategy", ["pack", "spread"])
def test_an_actor_goes_where_its_labels_say(far: str, wanted: str, is_far: bool, strategy: str) -> None:
    need = PlacedResources.model_validate(
        {"cpus": 0.1, "memory_gib": 0, "labels": {"pool": wanted}, "strategy": strategy}
    )
    actor = Where.options(**placed(need)).remote()
    assert (ray.get(actor.node.remote(), timeout=60) == far) == is_far
    ray.kill(actor)


@pytest.mark.parametrize("strategy", ["pack", "strict_pack"])
def test_ranks_go_where_the_labels_of_the_learner_say(far: str, strategy: str) -> None:
    group = placement_group([{"CPU": 0.1}] * 2, strategy.upper(), bundle_label_selector=[{"pool": "far"}] * 2)
    ray.get(group.ready(), timeout=60)
    assert set(placement_group_table(group)["bundles_to_node_id"].values()) == {far}
    remove_placement_group(group)


def test_every_node_is_looked_at_and_the_plan_sees_labels(far: str, tmp_path: Path) -> None:
    paths = {"run_dir": tmp_path}
    views = views_of_nodes(paths)
    assert len(views) == 2 and faults(views, paths) == []
    assert {"run_dir": tmp_path / "no"}.keys() == set(views_of_nodes({"run_dir": tmp_path / "no"})[1].missing)
    labels = [node.labels.get("pool") for node in capacity(load_config(None, ["cluster.address=auto"])).nodes]
    assert sorted(map(str, labels)) == ["None", "far"]


@pytest.mark.parametrize("count", [2, 4])
def test_an_engine_and_a_rank_share_each_gpu_of_the_colocated_recipes(
    cluster: Cluster, nodes: list[str], count: int
) -> None:
    """In the order in which Stage 2 starts them; the GPUs are only declared."""
    name = {2: "two", 4: "four"}[count]
    config = load_config(REPOSITORY / f"configs/recipes/{name}-gpus-colocated.yaml").cluster
    labels = {"pool": f"gpus-{count}"}
    node = cluster.add_node(num_cpus=64, num_gpus=count, object_store_memory=80 * 2**20, labels=labels)

    def start(role: PlacedResources) -> Any:
        small = role.model_copy(update={"memory_gib": 0, "labels": labels})
        return OnGpus.options(**resources(small)).remote()

    embedder = start(config.retrieval)
    ray.get(embedder.gpus.remote(), timeout=60)
    engines = [start(config.rollout) for _ in range(count)]
    assert len({tuple(gpus) for gpus in ray.get([one.gpus.remote() for one in engines], timeout=60)}) == count
    need = config.learner
    bundles = [{"CPU": need.cpus, "GPU": need.gpus}] * count
    group = placement_group(bundles, "STRICT_PACK", bundle_label_selector=[labels] * count)
    ranks = [
        OnGpus.options(
            num_cpus=need.cpus,
            num_gpus=need.gpus,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
        ).remote()
        for rank in range(count)
    ]
    assert len({tuple(gpus) for gpus in ray.get([one.gpus.remote() for one in ranks], timeout=60)}) == count
    for actor in (embedder, *engines, *ranks):
        ray.kill(actor)
    remove_placement_group(group)
    cluster.remove_node(node)
