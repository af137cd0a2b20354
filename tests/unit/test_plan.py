"""The placement plan adds up, and a job that does not fit is told which key to lower."""

import io
import socket

import pytest
from rich.console import Console

from pipelines.machine.placement import (
    Capacity,
    NodeCapacity,
    Plan,
    PlanError,
    cluster_capacity,
    local_capacity,
    placement_plan,
)
from pipelines.machine.resources import available_memory_gib, free_disk_gib
from vsr1.config import Config, load_config


def capacity(*nodes: NodeCapacity) -> Capacity:
    return Capacity(nodes, name="the test cluster", grow="add nodes to the cluster")


ROOMY = capacity(NodeCapacity(cpus=64, gpus=8, memory_gib=512))


def text(plan: Plan) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(plan.render())
    return console.file.getvalue()


def test_totals_are_counts_times_sizes():
    learner = ["grpo.learner.ranks=4", "cluster.learner={cpus: 2, gpus: 1, memory_gib: 6}"]
    plan = placement_plan(load_config(None, ["rollout.workers=3", *learner]), ROOMY)
    # rollout 3 x 0.5, learner 4 x 2, shards 2 x 0.05, service 0.1, reward 0.1, clips 0.05
    assert plan.total("cpus") == pytest.approx(1.5 + 8 + 0.1 + 0.1 + 0.1 + 0.05)
    assert plan.total("gpus") == 4
    plan.check()


def test_every_role_of_the_cluster_section_is_placed():
    roles = {role.size_key.removeprefix("cluster.") for role in placement_plan(Config()).roles}
    sections = {name for name, value in Config().cluster if type(value).__name__ == "ActorResources"}
    assert roles == sections


def test_one_clip_store_on_each_node():
    node = NodeCapacity(cpus=4, gpus=0, memory_gib=32)
    (clips,) = (
        role for role in placement_plan(Config(), capacity(node, node, node)).roles if role.name == "clip store"
    )
    assert clips.count == 3


def test_a_shortage_names_the_amounts_and_the_keys():
    config = load_config(None, ["rollout.workers=8", "cluster.rollout.gpus=1"])
    small = capacity(NodeCapacity(cpus=64, gpus=2, memory_gib=512))
    with pytest.raises(PlanError) as error:
        placement_plan(config, small).check()
    (line,) = str(error.value).splitlines()
    assert "needs 8 GPUs" in line and "the test cluster has 2" in line
    assert "rollout.workers=8 or cluster.rollout.gpus=1" in line and "add nodes" in line


def test_an_actor_larger_than_every_node_does_not_fit_although_the_total_does():
    node = NodeCapacity(cpus=8, gpus=0, memory_gib=2)
    with pytest.raises(
        PlanError, match=r"largest node of the test cluster has 2: lower cluster\.rollout\.memory_gib=3"
    ):
        placement_plan(Config(), capacity(*[node] * 8)).check()


def test_keys_in_messages_exist():
    for role in placement_plan(Config()).roles:
        for key in filter(None, (role.count_key, role.size_key)):
            value = Config()
            for name in key.split("."):
                value = getattr(value, name)


def test_a_plan_without_capacity_cannot_be_checked():
    plan = placement_plan(Config())
    assert "rollout worker" in text(plan)
    with pytest.raises(PlanError, match="pass `available`"):
        plan.check()


def test_the_table_shows_roles_totals_and_capacity():
    shown = text(placement_plan(Config(), ROOMY))
    for word in ("learner rank", "retrieval shard", "reward worker", "clip store", "needed", "the test cluster"):
        assert word in shown


def test_local_capacity_follows_the_configuration():
    config = load_config(None, ["cluster.num_cpus=3", "cluster.object_store_gib=0.5"])
    (node,) = local_capacity(config).nodes
    assert node.cpus == 3
    assert 0 <= node.memory_gib < available_memory_gib() + 1


def test_container_limit_lowers_the_memory(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemTotal: {32 * 1024**2} kB\nMemAvailable: {16 * 1024**2} kB\n")
    assert available_memory_gib(meminfo, tmp_path) == 16
    (tmp_path / "memory.max").write_text(str(4 * 1024**3))
    (tmp_path / "memory.current").write_text(str(1024**3))
    assert available_memory_gib(meminfo, tmp_path) == 3
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory_gib(meminfo, tmp_path) == 16


def test_free_disk_of_a_folder_that_does_not_exist_yet(tmp_path):
    assert free_disk_gib(tmp_path / "not" / "yet") == pytest.approx(free_disk_gib(tmp_path), abs=1)


def test_an_address_where_nothing_listens_fails_at_once():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(ConnectionError, match=f"cluster.address=127.0.0.1:{port}: nothing answers"):
        cluster_capacity(f"127.0.0.1:{port}")
