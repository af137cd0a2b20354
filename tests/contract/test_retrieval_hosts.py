"""The host of a retrieval service, its shards and a clip store is lost: another one takes over, or the stage ends.

The rollout workers are scripted, their searches are real: `RolloutWorkerActor._search` under a fleet, a pump, a ledger.
"""

import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cloudpickle import register_pickle_by_value
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from ray_clusters import STORE, joined_cluster

from actors.places import placed
from actors.retrieval import RetrievalHandle, RetrievalService
from pipelines.stage.watch import LostActorError
from pipelines.stage.workers import ALWAYS
from vsr1.config import Config
from vsr1.retrieval.request import SearchRequest, SearchResult
from vsr1.runs.events import EVENTS, EventLog
from vsr1.shared_calls import SharedCalls

from . import scripted_worker, test_fleet_actors, test_retrieval_actors
from .scripted_worker import ScriptedWorkerActor
from .test_fleet_actors import Stage
from .test_hosts import SOON
from .test_retrieval_actors import config, load_stand_in  # noqa: F401 (a fixture)

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(290)]
for module in (sys.modules[__name__], scripted_worker, test_fleet_actors, test_retrieval_actors):
    register_pickle_by_value(module)  # actors cannot import these files

SAMPLES = 60


class SearchingWorkerActor(ScriptedWorkerActor):
    """Plays a task by searching for its query a few times, and checks the answers against the first ones."""

    def __init__(self, service: RetrievalHandle, expected: dict[str, SearchResult]) -> None:
        super().__init__()
        self._retrieval, self._expected = {"train": service}, expected
        self._search_calls: SharedCalls[SearchResult] = SharedCalls()

    async def _act(self, query: str) -> None:
        for _ in range(3):
            await super()._act("0.05")
            self._engine.inside -= 1  # it has nothing to do meanwhile, and answers who asks for a sign of life
            result = await self._search("train", SearchRequest(query, k=3))
            self._engine.inside += 1
            assert result.retrieved == self._expected[query].retrieved


SearchingWorker: Any = ray.remote(num_cpus=0, concurrency_groups={"health": 2})(SearchingWorkerActor)


@ray.remote(num_cpus=0, max_restarts=ALWAYS)
class Store:
    """Bound to its node, as a clip store."""


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head with the driver, a node for rollout workers, and one for the library."""
    for name, value in SOON.items():
        monkeypatch.setenv(name, value)
    with joined_cluster(0, {"num_cpus": 1, "labels": {"pool": "rollouts"}}) as cluster:
        yield cluster


def library(cluster: Cluster) -> Any:
    return cluster.add_node(num_cpus=1, object_store_memory=STORE, labels={"pool": "library"})


def test_another_host_takes_over_and_without_one_the_stage_ends_by_name(
    cluster: Cluster,
    tmp_path: Path,
    config: Config,  # noqa: F811
) -> None:
    there = {"labels": {"pool": "library"}, "memory_gib": 0}
    retrieval = config.cluster.retrieval.model_copy(update={**there, "cpus": 0.6})
    shard = config.cluster.shard.model_copy(update={**there, "cpus": 0.1})
    roles = config.cluster.model_copy(update={"retrieval": retrieval, "shard": shard})
    first = library(cluster)
    options = placed(retrieval) | {"max_restarts": ALWAYS}
    service = RetrievalService.options(**options).remote(
        config.model_copy(update={"cluster": roles}), "test", load_stand_in
    )
    queries = [f"query {number}" for number in range(SAMPLES)]
    expected = {query: ray.get(service.search.remote(SearchRequest(query, k=3))) for query in queries}
    bound = Store.options(scheduling_strategy=NodeAffinitySchedulingStrategy(first.node_id, soft=False)).remote()
    stage = Stage(
        tmp_path,
        lambda name: SearchingWorker.options(num_cpus=0.5, label_selector={"pool": "rollouts"}).remote(
            service, expected
        ),
        2,
        write=EventLog(tmp_path / EVENTS).write,
        return_s=60.0,
    )
    stage.rewards = [test_fleet_actors.Rewards.options(label_selector={"pool": "rollouts"}).remote()]
    try:
        stage.watch.guard_shards("retrieval-train", service)
        stage.watch.guard("clips-train", "clips", bound)
        names = {"retrieval-train", "shard 0 (test)", "shard 1 (test)"}
        stage.until(lambda: stage.watch.places().keys() >= {*names, "clips-train"})
        assert {stage.watch.places()[name][0] for name in names} == {first.node_id}

        second = library(cluster)
        cluster.remove_node(first, allow_graceful=False)
        outcomes = stage.play(*queries, deadline_s=200.0)
        assert sorted(outcome.id.sample for outcome in outcomes) == list(range(SAMPLES))
        assert [outcome for outcome in outcomes if not hasattr(outcome, "turns")] == []
        stage.until(lambda: {event["member"] for event in stage.told("healed")} == names, 90)
        assert {stage.watch.places()[name][0] for name in names} == {second.node_id}
        faults = {event["member"]: event["reason"] for event in stage.told("fault")}
        assert faults.keys() == {*names, "clips-train"}
        # The watch of a node that goes may have told of a process that ended before it.
        gone = re.compile(rf"its node {first.node_ip_address} is gone|^process \d+ ended$")
        assert all(gone.search(reason) for reason in faults.values()), faults

        # Its process ends first, and is not what the error names.
        seen = len(stage.told("fault"))
        os.kill(stage.watch.places()["retrieval-train"][1], signal.SIGKILL)
        stage.until(lambda: "retrieval-train" in [event["member"] for event in stage.told("fault")[seen:]])
        stage.watch._config.return_s = 15.0  # a host's loss is found within 9 s
        cluster.remove_node(second, allow_graceful=False)
        began = time.monotonic()
        with pytest.raises(
            LostActorError, match=r"retrieval-train is gone: its node .*return_s=15 s.*cluster\.retrieval"
        ):
            stage.play(*queries, deadline_s=200.0)
        assert time.monotonic() - began < 120
    finally:
        stage.stop()
