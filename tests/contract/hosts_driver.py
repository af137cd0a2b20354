"""The driver of `test_hosts.py`: a fleet of scripted engines on the hosts of a pool plays until it is told to end.

Arguments: the address of Ray's GCS, and a folder: its `events.jsonl` tells what happens, a file `end` there ends it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import ray
from ray.cloudpickle import register_pickle_by_value

from actors.rollout import Sampling
from pipelines.stage.pump import RolloutPump
from tests.contract import scripted_worker, test_fleet_actors
from vsr1.episode.sample import FailedSample, SampleId
from vsr1.runs.events import EVENTS, EventLog
from vsr1.search.record import SearchTask
from vsr1.settings.parts import AgentConfig

SAMPLES, SECONDS, MEMBERS, DEADLINE_S = 40, "0.3", 2, 180.0


def make(name: str) -> Any:
    return scripted_worker.ScriptedWorker.options(num_cpus=1, label_selector={"pool": "rollouts"}).remote()


def main(address: str, folder: Path) -> None:
    for module in (scripted_worker, test_fleet_actors):
        register_pickle_by_value(module)  # actors cannot import these files
    ray.init(address=address, log_to_driver=False)
    events = EventLog(folder / EVENTS)
    stage = test_fleet_actors.Stage(folder, make, MEMBERS, write=events.write)
    stage.rewards = [test_fleet_actors.Rewards.options(label_selector={"pool": "head"}).remote()]
    stage.fleet.push(test_fleet_actors.Learners(), 3)
    stage.fleet.settle()
    events.write("playing")
    counts = {"rounds": 0, "missing": 0, "repeated": 0, "failed": 0}
    while not (folder / "end").exists():
        pump = RolloutPump(stage.fleet, stage.rewards, DEADLINE_S)
        tasks = [SearchTask(SampleId(f"p{number}"), "q", SECONDS) for number in range(SAMPLES)]
        outcomes = list(pump.play("train", tasks, AgentConfig(), Sampling(10), lambda now: None))
        samples = {outcome.id.prompt for outcome in outcomes}
        counts["rounds"] += 1
        counts["missing"] += SAMPLES - len(samples)
        counts["repeated"] += len(outcomes) - len(samples)
        counts["failed"] += sum(isinstance(outcome, FailedSample) for outcome in outcomes)
        events.write("played", **counts)
    events.write("over", serving=len(stage.fleet.serving()), **counts)
    stage.stop()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
