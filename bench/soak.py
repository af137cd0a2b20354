"""A training of Stage 2 under faults: processes of all roles get SIGKILL or SIGSTOP, one role after another."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from pipelines.train.commits import LEDGER
from vsr1.config import Config, dump_config
from vsr1.ledger import Past
from vsr1.runs.events import EVENTS, read_events
from vsr1.runs.folder import TRAINING_LOG
from vsr1.runs.journal import read_journal
from vsr1.runs.state import StateFolder
from vsr1.runs.trajectories import LoggedTrajectory, read_log

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


def bench_soak(config: Config, every_s: float, seed: int, most: int | None = None) -> dict[str, Any]:
    """Train, and return faults by role and signal, what the run told of them, and how its samples were counted.

    Args:
        every_s: mean seconds between two faults; the first one comes after the first step.
        most: faults, after which the training is left alone; None: until it ends.
    """
    chance, faults = random.Random(seed), Counter[str]()
    roles, due, began = list[str](), 0.0, time.monotonic()
    with training(config) as process:
        while process.poll() is None:
            time.sleep(PAUSE_S)
            if not (config.run_dir / TRAINING_LOG).is_file() or time.monotonic() < due or faults.total() == most:
                continue
            if due:
                roles = roles or chance.sample(list(TITLES), len(TITLES))  # all of them, before one comes again
                faults.update(_disturb(process.pid, roles, chance))
            due = time.monotonic() + chance.expovariate(1 / every_s)
    return {
        "exit_code": process.returncode,
        "seconds": time.monotonic() - began,
        "faults": dict(sorted(faults.items())),
        **_events(config.run_dir),
        **samples(config),
    }


@contextmanager
def training(config: Config) -> Iterator[subprocess.Popen[bytes]]:
    """Start Stage 2 as a user does, with its output in `logs/console.log`; a block that ends before it ends it."""
    logs = config.run_dir / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    settings = logs / "console.yaml"
    settings.write_text(dump_config(config), encoding="utf-8")
    command = [sys.executable, "-m", "pipelines", "grpo", "-c", str(settings)]
    with (logs / "console.log").open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.terminate()  # nothing happens where it is over
            process.wait()


def trained(run_dir: Path) -> list[LoggedTrajectory]:
    """Return the trajectories that a run has trained on, in their order."""
    path = run_dir / TRAINING_LOG
    return list(read_log(path)) if path.is_file() else []


def _disturb(pid: int, roles: list[str], chance: random.Random) -> list[str]:
    """Kill or stop a process below this one, of the first role that has one, and take the role out of the list.

    Returns:
        what was done; nothing where no role has a process.
    """
    number = chance.choice([signal.SIGKILL, signal.SIGSTOP])
    with suppress(psutil.NoSuchProcess):
        children = psutil.Process(pid).children(recursive=True)
        for role in roles:
            victims = [child for child in children if " ".join(child.cmdline()).startswith(TITLES[role])]
            if victims:
                chance.choice(victims).send_signal(number)
                roles.remove(role)
                return [f"{role} {number.name}"]
    return []


def _events(run_dir: Path) -> dict[str, Any]:
    events = read_events(run_dir / EVENTS)
    kinds = ("fault", "healed", "spare ready")
    by_role = {kind: Counter(event["role"] for event in events if event["kind"] == kind) for kind in kinds}
    seconds: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if event["kind"] == "fault":
            seconds[event["role"]].append(event["seconds"]["detect"])
    return {
        "told": {kind: dict(counts) for kind, counts in by_role.items()},
        "found_s_most": {role: max(values) for role, values in seconds.items()},
    }


def samples(config: Config) -> dict[str, int]:
    """Count what became of the samples: by the log of the trained ones, and by the ledger of the last state.

    Returns:
        those that were trained, those trained twice, those dropped, and those that were issued and are nowhere.
    """
    counts = Counter((one.trajectory.id.prompt, one.trajectory.id.sample) for one in trained(config.run_dir))
    newest = StateFolder(config.run_dir / "state" / "grpo").newest()
    past = Past.read(read_journal(newest[1] / LEDGER)) if newest else Past()
    dropped = past.closed.total() - past.closed["trained"]
    issued = config.grpo.steps * config.grpo.prompts_per_step * config.grpo.group_size
    return {
        "trained": len(counts),
        "repeated": sum(count > 1 for count in counts.values()),
        "dropped": dropped,
        "lost": issued - len(counts) - dropped,
        "ledger_trained": past.closed["trained"],
    }
