"""Actors and placement groups go to the nodes that the labels of their role name; all nodes of a job are looked at."""

from pathlib import Path

import pytest
import ray
from ray.util import placement_group_table, remove_placement_group
from ray.util.placement_group import placement_group

from actors.places import placed
from pipelines.machine.nodes import capacity
from pipelines.submit.nodes import faults, views_of_nodes
from vsr1.config import load_config
from vsr1.settings.parts import PlacedResources


@ray.remote
class Where:
    def node(self) -> str:
        return str(ray.get_runtime_context().get_node_id())


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
