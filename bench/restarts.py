"""Stage 2 that is killed again and again: the same command goes on, and what it trains on is what one left alone does.

About half of the kills come while a run starts, the others while it plays and learns, each at a random moment. Some
kill the driver alone, whose Ray finds out by itself; the others all that it has started, too, as a machine that stops
does.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from bench.soak import trained, training
from vsr1.config import Config
from vsr1.episode.trajectory import Turn
from vsr1.formats.digest import file_sha256
from vsr1.runs.events import EVENTS, read_events
from vsr1.runs.scalars import SCALARS, read_scalars
from vsr1.search.record import SearchTurn

LIMIT_S = 600.0  # for one run
PAUSE_S = 0.05


def bench_restarts(config: Config, kills: int, seed: int) -> dict[str, Any]:
    """Train once undisturbed in `run_dir/whole`, unless that is there, and once with kills in `run_dir/killed`.

    Returns:
        the kills by kind and moment, and how samples, tokens and weights at the end compare.
    """
    chance, began, counts = random.Random(seed), time.monotonic(), Counter[str]()
    whole, killed = (config.model_copy(update={"run_dir": config.run_dir / name}) for name in ("whole", "killed"))
    if not _checkpoint(whole).is_dir():
        _killed(whole, None)
    steps = [row["time"] for row in read_scalars(whole.run_dir / SCALARS) if row["name"] == "reward/total"]
    train_s = (steps[-1] - steps[0]) * len(steps) / (len(steps) - 1)
    start_s = steps[0] - (whole.run_dir / "config.grpo.yaml").stat().st_mtime - train_s / len(steps)
    everything: list[psutil.Process] = []
    for kill in range(kills):
        is_start = chance.random() < 0.5
        after_s = chance.uniform(0, start_s) if is_start else chance.uniform(0, 2 * train_s / kills)
        is_alone = chance.random() < 0.5
        if not _killed(killed, after_s, is_start=is_start, is_alone=is_alone, started=everything):
            break
        what = f"{'driver' if is_alone else 'all'} {'starting' if is_start else 'training'}"
        counts[what] += 1
        print(json.dumps({"kill": kill + 1, "what": what, "after_s": round(after_s, 1)}), file=sys.stderr)
    if not _checkpoint(killed).is_dir():
        _killed(killed, None)
    figures = {"kills": dict(sorted(counts.items())), "seconds": time.monotonic() - began, "steps": len(steps)}
    return figures | compared(whole, killed) | {"left": _left(everything)}


def _killed(
    config: Config,
    after_s: float | None,
    *,
    is_start: bool = False,
    is_alone: bool = False,
    started: list[psutil.Process] | None = None,
) -> bool:
    """Run the command, and kill it so many seconds after its start, or after its first rollout; None: never.

    Returns:
        whether it was killed; else it came to its end.

    Raises:
        RuntimeError: it ended with an error, or not in time.
    """
    before, began = _journals(config), time.monotonic()
    moment = None if after_s is None or not is_start else began + after_s
    with training(config) as process:
        while process.poll() is None and time.monotonic() < began + LIMIT_S:
            time.sleep(PAUSE_S)
            if after_s is not None and moment is None and _journals(config) > before:
                moment = time.monotonic() + after_s
            if moment is not None and time.monotonic() >= moment:
                _kill(process, is_alone, started if started is not None else [])
                return True
    if process.returncode:
        raise RuntimeError(f"a run ended with {process.returncode}; see {config.run_dir / 'logs' / 'console.log'}")
    return False


def _kill(process: subprocess.Popen[bytes], is_alone: bool, started: list[psutil.Process]) -> None:
    children = psutil.Process(process.pid).children(recursive=True)
    started += children
    os.kill(process.pid, signal.SIGKILL)
    for child in () if is_alone else children:
        with suppress(psutil.NoSuchProcess):
            child.kill()


def _journals(config: Config) -> tuple[int, bool]:
    """Return the number of the newest journal, and whether it has a frame."""
    journals = {int(path.stem): path for path in (config.run_dir / "ledger").glob("*.journal")}
    newest = max(journals, default=-1)
    return newest, newest >= 0 and journals[newest].stat().st_size > 0


def _checkpoint(config: Config) -> Path:
    return config.run_dir / "checkpoints" / "grpo"


def compared(whole: Config, killed: Config) -> dict[str, Any]:
    expected, replies = (
        {(one.trajectory.id.prompt, one.trajectory.id.sample): one.trajectory.turns for one in trained(run.run_dir)}
        for run in (whole, killed)
    )
    count = len(trained(killed.run_dir))
    both = [(expected[key], replies[key]) for key in expected.keys() & replies.keys()]
    same = [(one, other) for one, other in both if _tokens(one) == _tokens(other)]
    return {
        "resumed": sum(event["kind"] == "resumed" for event in read_events(killed.run_dir / EVENTS)),
        "trained": len(replies),
        "repeated": count - len(replies),
        "lost": len(expected.keys() - replies.keys()),
        "foreign": len(replies.keys() - expected.keys()),
        "same_tokens": len(same),
        "logprob_gap": max((_gap(one, other) for one, other in same), default=0.0),
        "same_weights": _digests(whole) == _digests(killed),
    }


def _tokens(turns: list[Turn[SearchTurn]]) -> list[list[int]]:
    return [turn.response_token_ids for turn in turns]


def _gap(turns: list[Turn[SearchTurn]], others: list[Turn[SearchTurn]]) -> float:
    """Return the largest difference between the log-probs that two engines gave the same tokens."""
    pairs = zip(turns, others, strict=True)
    logprobs = [zip(turn.response_logprobs, other.response_logprobs, strict=True) for turn, other in pairs]
    gaps = [abs(one - another) for both in logprobs for one, another in both]
    return max(gaps, default=0.0)


def _digests(config: Config) -> list[str]:
    return [file_sha256(path) for path in sorted(_checkpoint(config).glob("*.safetensors"))]


def _left(started: list[psutil.Process]) -> int:
    """Count the processes of killed runs that are still there, and end them."""
    left = [one for one in started if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    return len(left)
