"""Nodes that join, leave and die under a fleet: its members go where there is a place, and every sample is played."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cloudpickle import register_pickle_by_value
from ray.cluster_utils import Cluster
from ray_clusters import STORE, joined_cluster

from vsr1.episode.sample import FailedSample

from . import scripted_worker, test_fleet_actors
from .scripted_worker import ScriptedWorker
from .test_fleet_actors import Learners, Stage

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(240)]
for module in (sys.modules[__name__], scripted_worker, test_fleet_actors):
    register_pickle_by_value(module)  # actors cannot import these files


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head without a place for a member."""
    with joined_cluster(0) as cluster:
        yield cluster


def _drain(cluster: Cluster, node_id: str) -> None:
    command = [str(Path(sys.executable).parent / "ray"), "drain-node", "--address", cluster.address]
    reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
    command += ["--node-id", node_id, *reason, "--deadline-remaining-seconds", "60"]
    subprocess.run(command, check=True, env=os.environ, capture_output=True, timeout=60)


def test_members_move_away_from_a_node_that_leaves_and_come_back_after_one_that_dies(
    cluster: Cluster, tmp_path: Path
) -> None:
    for _ in range(2):
        cluster.add_node(num_cpus=1, object_store_memory=STORE)
    stage = Stage(tmp_path, lambda name: ScriptedWorker.options(num_cpus=1).remote(), 2)
    try:
        stage.fleet.push(Learners(), 3)
        stage.fleet.settle()
        third = cluster.add_node(num_cpus=1, object_store_memory=STORE)
        [leaver] = [member for member in stage.fleet.members if member.name == "rollout-1"]
        _drain(cluster, leaver.node)
        outcomes = stage.play(*["0.3"] * 40)
        assert {outcome.reward for outcome in outcomes} == {3.0}
        stage.until(lambda: sorted(stage.fleet.serving()) == ["rollout-0", "rollout-2"], 60)
        stage.until(lambda: stage.fleet.counts() == {"healthy": 2, "retired": 1}, 60)
        assert stage.told("draining")[0]["reason"] == "its node leaves" and not stage.told("fault")
        [joiner] = [member for member in stage.fleet.members if member.name == "rollout-2"]
        assert joiner.node == third.node_id

        cluster.remove_node(third, allow_graceful=False)
        outcomes = stage.play(*["0.3"] * 20)
        assert len(outcomes) == 20 and not any(isinstance(outcome, FailedSample) for outcome in outcomes)
        cluster.add_node(num_cpus=1, object_store_memory=STORE)
        stage.until(lambda: sorted(stage.fleet.serving()) == ["rollout-0", "rollout-2"], 90)
        assert [event["member"] for event in stage.told("healed")] == ["rollout-2"]
    finally:
        stage.stop()
