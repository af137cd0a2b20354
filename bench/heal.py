"""Faults of every role of Stage 2, one at a time: seconds until each was found, and until it was healed, by part.

A process of the role gets SIGKILL, and later SIGSTOP, while samples are played and the learner takes steps. A rollout
worker has a spare: what is timed is the spare that serves in its place, and the start of the next spare.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from typing import Any

import psutil

from actors.healing import HealingLearners
from actors.rollout import Sampling
from pipelines.data.build import ensure_dataset
from pipelines.stage.connection import connect
from pipelines.stage.tasks import PromptStream, group_of
from pipelines.stage.workers import Workers, complete, workers
from vsr1.config import Config
from vsr1.rl.batch import Example
from vsr1.rl.credit import credits_of
from vsr1.runs.events import EVENTS, read_events
from vsr1.search.examples import trained_examples

ROLES = {  # what the watch calls its actors
    "rollout": "rollout-",
    "engine": "rollout-",
    "retrieval": "retrieval-",
    "shard": "shard ",
    "rewards": "reward-",
    "clips": "clips-",
    "learner": "learner-",
}
LIMIT_S = 240.0
PAUSE_S = 0.1


def bench_heal(config: Config, roles: list[str]) -> dict[str, Any]:
    """Return the seconds of each role's faults by signal: until `found` and `healed`, and the parts of the healing."""
    config.rollout.workers, config.fleet.spares = 1, 1
    connect(config)
    ensure_dataset(config)
    figures: dict[str, Any] = {}
    with workers(config, "train") as stage, stage.learners(config, "train") as learners:
        tasks = group_of(next(PromptStream(config)), config.grpo.group_size)
        sampling = Sampling(config.retrieval.top_k, sigma=config.grpo.latents.sigma, temperature=1.0)
        trajectories, _ = complete(list(stage.play("train", tasks, config.agent, sampling)))
        credits = credits_of(trajectories, config.grpo.objective, config.agent.max_new_tokens)
        examples = trained_examples(trajectories, credits, config.grpo, config.agent)
        learners.step(examples, 0.0)
        stage.push(learners, 1)
        for role in roles:
            for number in (signal.SIGKILL, signal.SIGSTOP):
                _wait_until_whole(config, stage, role)
                figures.setdefault(role, {})[number.name] = _fault(config, stage, learners, examples, role, number)
                print(json.dumps({role: figures[role]}), file=sys.stderr)
    return figures


def _wait_until_whole(config: Config, stage: Workers, role: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    wanted = {"healthy": 1, "stale": 1}
    while stage.fleet.counts() != wanted or not _victims(stage, role):
        if time.monotonic() > deadline:
            raise RuntimeError(f"{role} did not come back: {stage.fleet.counts()}, {stage.watch.places()}")
        stage.fleet.tick()
        time.sleep(PAUSE_S)


def _victims(stage: Workers, role: str) -> list[int]:
    """Return the processes of a role; of rollout workers those that serve, and of engines the child of these."""
    pids = {name: pid for name, (_, pid) in stage.watch.places().items() if name.startswith(ROLES[role])}
    if role not in ("rollout", "engine"):
        return list(pids.values())
    serving = [pid for name, pid in pids.items() if name in stage.fleet.serving()]
    if role == "rollout":
        return serving
    return [child.pid for pid in serving for child in psutil.Process(pid).children() if "Engine" in child.name()]


def _fault(
    config: Config, stage: Workers, learners: HealingLearners, examples: list[Example], role: str, number: int
) -> dict[str, Any]:
    before = len(read_events(config.run_dir / EVENTS))
    is_over = threading.Event()

    def learn() -> None:
        while not is_over.is_set():
            learners.step(examples, 0.0)

    learning = threading.Thread(target=learn)
    if role == "learner":
        learning.start()
        time.sleep(1.0)
    victim, began, signalled = _victims(stage, role)[-1], time.monotonic(), time.time()
    os.kill(victim, number)
    name = "rollout" if role == "engine" else role
    figures: dict[str, Any] = {}
    while "healed" not in figures:
        if time.monotonic() - began > LIMIT_S:
            raise RuntimeError(f"{role} was not healed within {LIMIT_S:g} s of {signal.Signals(number).name}")
        stage.fleet.tick()
        time.sleep(PAUSE_S)
        for event in read_events(config.run_dir / EVENTS)[before:]:
            if event.get("role") == name and event["kind"] == "fault":
                figures.setdefault("found", event["time"] - signalled)
            if event.get("role") == name and event["kind"] == "healed":
                figures |= {"healed": event["time"] - signalled, "parts": event["seconds"]}
    is_over.set()
    if role == "learner":
        learning.join()
    if name == "rollout":
        _wait_until_whole(config, stage, role)
        ready = [event for event in read_events(config.run_dir / EVENTS)[before:] if event["kind"] == "spare ready"]
        figures["next spare"] = ready[-1]["seconds"]
    return figures
