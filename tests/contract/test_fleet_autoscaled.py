"""A fleet on a Ray whose autoscaler adds nodes for members that have no place, and takes away idle ones."""

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cloudpickle import register_pickle_by_value

from actors.clips import ClipStores
from bench.hosts_autoscaled import autoscaling_head, drain
from vsr1.episode.sample import FailedSample
from vsr1.runs.scale import write_scale

from . import scripted_worker, test_fleet_actors
from .scripted_worker import ScriptedWorker
from .test_fleet_actors import Learners, Stage

pytestmark = [pytest.mark.soak, pytest.mark.timeout(280)]
for module in (sys.modules[__name__], scripted_worker, test_fleet_actors):
    register_pickle_by_value(module)  # actors cannot import these files
SPOT = {"resources": {"CPU": 1, "object_store_memory": 2**27}, "labels": {"pool": "spot"}, "max_workers": 2}
COMES_S, PREEMPTED_S, PLAY_S = 60.0, 8.0, 15.0


@pytest.fixture
def address() -> Iterator[str]:
    ray.shutdown()  # the Ray that other tests share
    with autoscaling_head({"spot": SPOT}, {"CPU": 1}) as address:
        ray.init(address=address, log_to_driver=False)
        try:
            yield address
        finally:
            ray.shutdown()


def spot_nodes() -> list[str]:
    return [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Labels"].get("pool") == "spot"]


def test_nodes_come_for_members_and_leave_after_them(address: str, tmp_path: Path) -> None:
    stores = ClipStores(object(), 10**6, {"num_cpus": 0.05, "max_restarts": -1})

    def make(name: str) -> Any:
        return ScriptedWorker.options(num_cpus=0.9, label_selector={"pool": "spot"}).remote()

    began = time.monotonic()
    stage = Stage(tmp_path, make, 1, stores=stores)
    try:
        assert len(spot_nodes()) == 1
        stage.fleet.push(Learners(), 3)
        stage.fleet.settle()
        write_scale(tmp_path, 2)
        stage.until(lambda: len(stage.fleet.serving()) == 2, COMES_S)
        assert len(spot_nodes()) == 2

        [_, second] = stage.fleet.members
        notice = threading.Timer(1.0, drain, (address, second.node, PREEMPTED_S))
        notice.start()
        outcomes = stage.play(*[str(PLAY_S)] * 8, deadline_s=240.0)
        notice.join()
        assert sorted(outcome.id.sample for outcome in outcomes) == list(range(8))
        assert not any(isinstance(outcome, FailedSample) for outcome in outcomes)
        assert [event["samples"] for event in stage.told("handed_back")] == [4], (
            "half of them, that are played elsewhere"
        )
        stage.until(lambda: second.node not in spot_nodes(), COMES_S)
        stage.until(lambda: sorted(stage.fleet.serving()) == ["rollout-0", "rollout-2"], COMES_S)
        assert len(spot_nodes()) == 2 and not stage.told("fault")

        write_scale(tmp_path, 1)
        stage.until(lambda: len(spot_nodes()) == 1, COMES_S)
        assert len(stage.fleet.serving()) == 1
    finally:
        stage.stop()
        for event in stage.events:
            print(f"{event['time'] - began:.1f} s", {key: event[key] for key in event.keys() - {"time", "seconds"}})
