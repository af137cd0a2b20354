"""A training of Stage 2 under faults: processes of random roles get SIGKILL or SIGSTOP until it ends."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from vsr1.config import Config, dump_config
from vsr1.runs.events import EVENTS, read_events
from vsr1.runs.folder import TRAINING_LOG
from vsr1.runs.trajectories import read_log

TITLES = {  # of the processes of each role
    "rollout": "ray::RolloutWorker",
    "engine": "VLLM::EngineCor",
    "retrieval": "ray::RetrievalService",
    "shard": "ray::IndexShard",
    "rewards": "ray::RewardWorker",
    "clips": "ray::ClipStore",
    "learner": "ray::LearnerRank",
}
PAUSE_S = 0.5


def bench_soak(config: Config, every_s: float, seed: int) -> dict[str, Any]:
    """Train, and return faults by role and signal, what the run told of them, and how its samples were counted.

    Args:
        every_s: mean seconds between two faults; the first one comes after the first step.
    """
    chance, faults = random.Random(seed), Counter[str]()
    log, began = config.run_dir / "logs" / "soak.log", time.monotonic()
    log.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, log.open("wb") as output:
        settings = Path(folder) / "config.yaml"
        settings.write_text(dump_config(config), encoding="utf-8")
        command = [sys.executable, "-m", "pipelines", "grpo", "-c", str(settings)]
        training = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        due = 0.0
        try:
            while training.poll() is None:
                time.sleep(PAUSE_S)
                if not (config.run_dir / TRAINING_LOG).is_file() or time.monotonic() < due:
                    continue
                if due and (fault := _disturb(training.pid, chance)):
                    faults[fault] += 1
                due = time.monotonic() + chance.expovariate(1 / every_s)
        finally:
            training.terminate()  # nothing happens where it is over
            training.wait()
    return {
        "exit_code": training.returncode,
        "seconds": time.monotonic() - began,
        "faults": dict(faults),
        **_events(config.run_dir),
        **_samples(config),
    }


def _disturb(pid: int, chance: random.Random) -> str:
    """Kill or stop a process of a random role below this one; return what was done, nothing where none was there."""
    role, number = chance.choice(list(TITLES)), chance.choice([signal.SIGKILL, signal.SIGSTOP])
    with suppress(psutil.NoSuchProcess):
        children = psutil.Process(pid).children(recursive=True)
        victims = [child for child in children if " ".join(child.cmdline()).startswith(TITLES[role])]
        if victims:
            chance.choice(victims).send_signal(number)
            return f"{role} {number.name}"
    return ""


def _events(run_dir: Path) -> dict[str, Any]:
    events = read_events(run_dir / EVENTS)
    found = [event["seconds"]["detect"] for event in events if event["kind"] == "fault"]
    kinds = ("fault", "healed", "spare ready")
    by_role = {kind: Counter(event["role"] for event in events if event["kind"] == kind) for kind in kinds}
    return {"told": {kind: dict(counts) for kind, counts in by_role.items()}, "found_s_most": max(found, default=0.0)}


def _samples(config: Config) -> dict[str, int]:
    """Count the samples that were trained, those trained twice, and those of whole steps that are not there."""
    path, settings = config.run_dir / TRAINING_LOG, config.grpo
    counts = Counter((one.trajectory.id.prompt, one.trajectory.id.sample) for one in read_log(path))
    wanted = settings.steps * settings.prompts_per_step * settings.group_size
    return {
        "trained": len(counts),
        "repeated": sum(count > 1 for count in counts.values()),
        "missing": wanted - len(counts),
    }
