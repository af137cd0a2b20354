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
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Fault:
    """A signal to a process of a role."""

    role: str
    signal: str
    time: float

    @property
    def told_as(self) -> str:
        """Return the role of the event that tells of it: an engine's worker ends with it."""
        return "rollout" if self.role == "engine" else self.role


def bench_soak(
    config: Config, every_s: float, seed: int, most: int | None = None, limit_s: float | None = None
) -> dict[str, Any]:
    """Train, and return faults by role and signal, what the run told of them, and how its samples were counted.

    Args:
        every_s: mean seconds between two faults; the first one comes after the first step.
        most: faults, after which the training is left alone; None: until it ends.
        limit_s: seconds after which the training gets SIGTERM, if it has not ended; the same settings go on with it.
    """
    chance, faults = random.Random(seed), list[Fault]()
    roles, due, began = list[str](), 0.0, time.monotonic()
    with training(config) as process:
        while process.poll() is None:
            time.sleep(PAUSE_S)
            if limit_s is not None and time.monotonic() >= began + limit_s:
                break
            if not (config.run_dir / TRAINING_LOG).is_file() or time.monotonic() < due or len(faults) == most:
                continue
            if due:
                roles = roles or chance.sample(list(TITLES), len(TITLES))  # all of them, before one comes again
                faults += _disturb(process.pid, roles, chance)
            due = time.monotonic() + chance.expovariate(1 / every_s)
    return {
        "exit_code": process.returncode,
        "seconds": time.monotonic() - began,
        "faults": dict(sorted(Counter(f"{fault.role} {fault.signal}" for fault in faults).items())),
        **_told(config.run_dir, faults),
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


def _disturb(pid: int, roles: list[str], chance: random.Random) -> list[Fault]:
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
                return [Fault(role, number.name, time.time())]
    return []


def seconds_until_told(faults: list[Fault], events: list[dict[str, Any]]) -> tuple[dict[str, list[float]], int]:
    """Return the seconds from each signal to the event that tells of it, by role, and the signals that have none.

    An event counts for the last signal to its role: one to a process that was starting has often none.
    """
    seconds: dict[str, list[float]] = defaultdict(list)
    last: dict[str, Fault] = {}  # signal of each role that nothing has told of
    marks: list[Fault | dict[str, Any]] = [*faults, *(event for event in events if event["kind"] == "fault")]
    for mark in sorted(marks, key=lambda mark: mark.time if isinstance(mark, Fault) else mark["time"]):
        if isinstance(mark, Fault):
            last[mark.told_as] = mark
        elif fault := last.pop(mark["role"], None):
            seconds[fault.role].append(mark["time"] - fault.time)
    return seconds, len(faults) - sum(map(len, seconds.values()))


def _told(run_dir: Path, faults: list[Fault]) -> dict[str, Any]:
    events = read_events(run_dir / EVENTS)
    kinds = ("fault", "healed", "spare ready")
    by_role = {kind: Counter(event["role"] for event in events if event["kind"] == kind) for kind in kinds}
    seconds, untold = seconds_until_told(faults, events)
    return {
        "told": {kind: dict(counts) for kind, counts in by_role.items()},
        "found_s_most": {role: max(values) for role, values in seconds.items()},
        "untold": untold,
    }


def samples(config: Config) -> dict[str, int]:
    """Count what became of the samples: by the log of the trained ones, and by the ledger of the last state.

    Returns:
        the steps, and of their samples those that were trained, those trained twice, those dropped, and those that
        were issued and are nowhere.
    """
    log = trained(config.run_dir)
    counts = Counter((one.trajectory.id.prompt, one.trajectory.id.sample) for one in log)
    steps = max((one.step for one in log), default=0)
    newest = StateFolder(config.run_dir / "state" / "grpo").newest()
    past = Past.read(read_journal(newest[1] / LEDGER)) if newest else Past()
    dropped = past.closed.total() - past.closed["trained"]
    issued = steps * config.grpo.prompts_per_step * config.grpo.group_size
    return {
        "steps": steps,
        "trained": len(counts),
        "repeated": sum(count > 1 for count in counts.values()),
        "dropped": dropped,
        "lost": issued - len(counts) - dropped,
        "ledger_trained": past.closed["trained"],
    }
