"""The placement of each stage adds up, and a stage that does not fit is told which key to lower."""

import io
import socket

import pytest
import ray
from rich.console import Console
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.machine import placement
from pipelines.machine.nodes import Capacity, capacity
from pipelines.machine.placement import Plan, PlanError, Stage, check_placement, placement_plan
from pipelines.machine.resources import MachineError, free_disk_gib, free_memory_gib
from vsr1.config import Config, load_config
from vsr1.settings.parts import ActorResources, Node

STAGES: tuple[Stage, ...] = ("sft", "grpo", "eval")


def cluster(*nodes: Node) -> Capacity:
    return Capacity(nodes, name="the test cluster", grow="add nodes to the cluster")


def node(cpus: float = 64, gpus: float = 8, memory_gib: float = 512) -> Node:
    return Node(cpus=cpus, gpus=gpus, memory_gib=memory_gib)


ROOMY = cluster(node())


def text(plan: Plan) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(plan.render())
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def counts(plan: Plan) -> dict[str, int]:
    return {role.name: role.count for role in plan.roles}


def test_totals_of_stage_2_are_counts_times_sizes() -> None:
    learner = ["grpo.learner.ranks=4", "cluster.learner={cpus: 2, gpus: 1, memory_gib: 6}"]
    plan = placement_plan(load_config(None, ["rollout.workers=3", *learner]), "grpo", ROOMY)
    # rollout 3 x 0.5, learner 4 x 2, shards 2 x 0.05, service 0.1, reward 0.1, clips 0.05
    assert plan.total("cpus") == pytest.approx(1.5 + 8 + 0.1 + 0.1 + 0.1 + 0.05)
    assert plan.total("gpus") == 4
    plan.check()


def test_stage_1_has_ranks_and_what_streams_their_clips() -> None:
    config = load_config(
        None, ["sft.learner.ranks=3", "sft.batch_size=3", "grpo.learner.ranks=7", "cluster.learner={cpus: 2, gpus: 1}"]
    )
    plan = placement_plan(config, "sft", ROOMY)
    assert counts(plan) == {"learner rank": 3, "clip reader": 6, "clip stream": 3}
    assert plan.total("cpus") == pytest.approx(3 * 2 + 6 * 0.1)
    assert (plan.total("gpus"), plan.total("memory_gib")) == (3, 0)  # Ray Train reserves no memory


def test_an_evaluation_serves_one_split_and_has_no_learner() -> None:
    config = load_config(None, ["grpo.evaluate_after=true", "grpo.validate_every=1", "retrieval.replicas=2"])
    of_one = placement_plan(config, "eval", ROOMY)
    assert counts(of_one) == {
        "rollout worker": 1, "retrieval shard": 4, "retrieval service": 1, "reward worker": 1, "clip store": 1,
    }  # fmt: skip
    of_three = counts(placement_plan(config, "grpo", ROOMY))
    assert (of_three["retrieval shard"], of_three["retrieval service"], of_three["clip store"]) == (12, 3, 3)


def test_further_embedders_reserve_what_the_service_does_and_are_named_with_their_key() -> None:
    options = ["retrieval.embedders=3", "cluster.retrieval.gpus=0.3", "grpo.validate_every=1"]
    plan = placement_plan(load_config(None, options), "grpo", ROOMY)
    assert (counts(plan)["retrieval service"], counts(plan)["query embedder"]) == (2, 4)
    assert plan.total("gpus") == pytest.approx(6 * 0.3)
    assert "query embedder" in text(plan)
    [line] = placement_plan(load_config(None, options), "grpo", cluster(node(gpus=1))).shortages()
    assert "needs 1.8 GPUs, the test cluster has 1: lower retrieval.embedders=3 or cluster.retrieval.gpus=0.3" in line


@pytest.mark.parametrize(("ranks", "largest"), [(2, "Stage 2"), (40, "Stage 1"), (400, "Stage 1")])
def test_the_demo_needs_what_its_largest_stage_needs(ranks: int, largest: str) -> None:
    plan = placement_plan(
        load_config(None, [f"sft={{batch_size: {ranks}, learner: {{ranks: {ranks}}}}}"]), "demo", ROOMY
    )
    assert plan.title == f"the demo (largest: {largest})"


def test_every_role_of_the_cluster_section_is_placed() -> None:
    plans = [placement_plan(Config(), stage, ROOMY) for stage in STAGES]
    roles = {role.size_key.removeprefix("cluster.") for plan in plans for role in plan.roles if role.size_key}
    sections = {name for name, value in Config().cluster if isinstance(value, ActorResources)}
    assert roles == sections


@pytest.mark.parametrize("stage", ["grpo", "eval"])
def test_one_clip_store_on_each_node(stage: Stage) -> None:
    assert counts(placement_plan(Config(), stage, cluster(node(), node(), node())))["clip store"] == 3


def test_a_shortage_names_the_amounts_and_the_keys() -> None:
    config = load_config(None, ["rollout.workers=8", "cluster.rollout.gpus=1"])
    with pytest.raises(PlanError) as error:
        placement_plan(config, "eval", cluster(node(gpus=2))).check()
    assert str(error.value) == (
        "the evaluation needs 8 GPUs, the test cluster has 2: "
        "lower rollout.workers=8 or cluster.rollout.gpus=1; or add nodes to the cluster"
    )


def test_a_shortage_names_keys_with_the_values_that_they_have() -> None:
    config = load_config(
        None, ["retrieval.shards=40", "retrieval.replicas=2", "sft={batch_size: 40, learner: {ranks: 40}}"]
    )
    small = cluster(node(cpus=3))
    assert (
        "lower retrieval.shards=40 or cluster.shard.cpus=0.05; or"
        in placement_plan(config, "eval", small).shortages()[0]
    )
    [line] = placement_plan(config, "sft", small).shortages()
    assert line.startswith(
        "Stage 1 needs 20 CPUs, the test cluster has 3: lower sft.learner.ranks=40 or cluster.learner."
    )


def test_an_actor_larger_than_every_node_does_not_fit_although_the_total_does() -> None:
    nodes = cluster(*[node(cpus=8, gpus=0, memory_gib=2)] * 8)
    with pytest.raises(
        PlanError, match=r"largest node of the test cluster has 2: lower cluster\.rollout\.memory_gib=3$"
    ):
        placement_plan(Config(), "grpo", nodes).check()


@pytest.mark.parametrize(
    ("cpus", "fits"), [([4, 4, 4], True), ([4, 4, 1], False), ([12], True), ([4, 4, 3], True), ([6, 3], True)]
)
def test_actors_must_fit_onto_the_nodes_not_only_into_their_sum(cpus: list[float], fits: bool) -> None:
    """Three ranks of 2.5 CPUs, of which two do not share a node of 4."""
    config = load_config(None, ["sft={batch_size: 3, learner: {ranks: 3}}", "cluster.learner.cpus=2.5"])
    plan = placement_plan(config, "sft", cluster(*[node(cpus=each) for each in cpus]))
    if fits:
        plan.check()
    else:
        with pytest.raises(PlanError, match=r"no node has room for another learner rank .*lower sft\.learner\.ranks=3"):
            plan.check()


def test_without_gpus_nothing_computes_on_cuda() -> None:
    config = load_config(None, ["model.device=cuda"])
    with pytest.raises(
        PlanError, match=r"model\.device=cuda needs a GPU, the test cluster has none: take model\.device"
    ):
        placement_plan(config, "sft", cluster(node(gpus=0))).check()
    with pytest.raises(
        PlanError, match=r"raise cluster\.rollout\.gpus and cluster\.retrieval\.gpus and cluster\.learner\."
    ):
        placement_plan(config, "grpo", ROOMY).check()
    shares = [f"cluster.{role}.gpus=0.3" for role in ("learner", "rollout", "retrieval")] + ["grpo.learner.ranks=1"]
    shares.append("rollout.engine.kv_cache_gib=2")
    placement_plan(load_config(None, ["model.device=cuda", *shares]), "grpo", ROOMY).check()


def test_what_other_jobs_have_taken_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two nodes of 4 CPUs; a job holds all of the one and half of the other, and ends later."""
    total = {"CPU": 4.0, "memory": 64.0 * 2**30}
    nodes = [{"NodeID": name, "Alive": True, "Resources": total} for name in "ab"]
    free = {"a": {"memory": total["memory"]}, "b": total | {"CPU": 2.0}}
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr("ray._private.state.available_resources_per_node", lambda: free)
    config = load_config(None, ["cluster.address=head:6379", "cluster.learner.cpus=1.5"])
    there = capacity(config)
    assert [each.cpus for each in there.nodes] == [0, 2]
    with pytest.raises(
        PlanError, match=r"of which other jobs have taken 6 CPUs, has 2: .*; or wait for the other jobs"
    ):
        placement_plan(config, "sft", there).check()
    waits: list[float] = []
    monkeypatch.setattr(placement.time, "sleep", lambda seconds: (waits.append(seconds), free.update(a=total, b=total)))
    check_placement(config, "sft")
    assert len(waits) == 1, "it was given back meanwhile"


def test_keys_in_messages_exist() -> None:
    for role in (role for stage in STAGES for role in placement_plan(Config(), stage, ROOMY).roles):
        for key in filter(None, (role.count_key, role.size_key)):
            value = Config()
            for name in key.split("."):
                value = getattr(value, name)
            assert key == role.size_key or value == role.number


def test_the_table_shows_roles_totals_and_capacity() -> None:
    table = text(placement_plan(Config(), "grpo", ROOMY))
    for word in (
        "Placement of Stage 2", "learner rank", "retrieval shard", "reward worker", "clip store", "needed",
        "the test cluster",
    ):  # fmt: skip
        assert word in table


def test_the_capacity_of_this_machine_follows_the_configuration() -> None:
    there = capacity(load_config(None, ["cluster.num_cpus=3", "cluster.object_store_gib=0.5"]))
    [machine] = there.nodes
    assert (there.name, machine.cpus) == ("this machine", 3)
    assert 0 <= machine.memory_gib < free_memory_gib() + 1


@pytest.mark.parametrize("stage", [*STAGES, "demo"])
def test_a_stage_that_does_not_fit_is_refused(stage: Stage) -> None:
    check_placement(load_config(None, ["cluster.num_cpus=9", "cluster.rollout.memory_gib=0.1"]), stage)
    sizes = [f"cluster.{role}.cpus=100" for role in ("learner", "rollout")]
    with pytest.raises(PlanError, match="needs 100 CPUs, the largest node of this machine has 9"):
        check_placement(load_config(None, ["cluster.num_cpus=9", *sizes]), stage)


@pytest.mark.parametrize(
    ("stage", "title"),
    [("sft", "Stage 1"), ("grpo", "Stage 2"), ("eval", "the evaluation"), ("demo", "the demo (largest: Stage 2)")],
)
def test_a_dry_run_shows_the_plan_of_its_own_stage(stage: str, title: str) -> None:
    fitting = CliRunner().invoke(app, [stage, "--dry-run", "toy.create=true", "cluster.rollout.memory_gib=0.1"])
    assert fitting.exit_code == 0, fitting.output
    assert f"Placement of {title}" in fitting.output and "run_dir:" in fitting.output
    too_many = ["toy.create=true", "cluster.learner.gpus=99", "cluster.rollout.gpus=99"]
    refused = CliRunner().invoke(app, [stage, "--dry-run", *too_many])
    assert refused.exit_code == 1
    assert "needs 99 GPUs, the largest node of this machine has" in refused.stderr


def test_the_limit_of_a_container_lowers_the_memory(tmp_path) -> None:
    (tmp_path / "memory.max").write_text(str(2 * 1024**3))
    (tmp_path / "memory.current").write_text(str(1024**3 + 1024**3 // 2))
    assert free_memory_gib(tmp_path) == 0.5
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory_gib(tmp_path) > 0.5


def test_free_disk_of_a_folder_that_does_not_exist_yet(tmp_path) -> None:
    assert free_disk_gib(tmp_path / "not" / "yet") == pytest.approx(free_disk_gib(tmp_path), abs=1)


def test_an_address_where_nothing_listens_fails_at_once() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(MachineError, match=rf"no Ray answers at 127\.0\.0\.1:{port}, which cluster\.address .* names"):
        capacity(load_config(None, [f"cluster.address=127.0.0.1:{port}"]))
