"""The toy benchmark in one go: Stage 1 for every seed, its evaluation, then every arm from it.

`python -m bench toy run`.

Each run is a process of its own with a Ray of its own, on one of the machine's GPUs; several share a GPU. What a run
prints goes to `RUN.log` beside its folder. A run that ended before is not made again, so the command can be repeated.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from queue import SimpleQueue
from threading import Lock

import ray

from bench.toy.results import results
from bench.toy.rewrites import write_rewrites
from pipelines.data.build import ensure_dataset
from pipelines.stage.connection import connect
from vsr1.config import Config, load_config
from vsr1.formats.dataset import DatasetFolder

ARMS = Path(__file__).parents[2] / "configs" / "arms"
STAGE_1 = "sft"  # the arm that is only evaluated
STAGE_1_TEXT = "sfttext"  # Stage 1 of arms that refine in new words
RESULTS = {"sft": "checkpoints/sft", "eval": "eval.json", "grpo": "after.json"}  # what a stage that ended leaves
APART_S = 1.0  # between starts: two Rays that start at one time can find the same port free


@dataclass(frozen=True)
class Bench:
    """What all runs share.

    Attributes:
        files: configuration files.
        overrides: `key=value` of every run.
        at_once: runs at one time.
        gpus: of this machine; with 0 the runs are on the CPU.
        say: shows a line of text.
    """

    files: tuple[Path, ...]
    overrides: tuple[str, ...]
    at_once: int
    gpus: int
    say: Callable[[str], None]

    def settings(self, arm: str = STAGE_1) -> Config:
        """Return the settings of an arm.

        Raises:
            ConfigError: a setting is wrong, or the arm has no file.
        """
        return load_config([*self.files, _arm_file(arm)], list(self.overrides))


@dataclass(frozen=True)
class Run:
    """One command: a stage with the settings of an arm, in the folder `name`, from the Stage 1 of the run `start`."""

    name: str
    stage: str
    arm: str
    seed: int
    start: str | None = None  # None: from the policy of the settings

    def command(self, shared: Bench, folder: Path) -> list[str]:
        """Return the arguments of the process that makes this run in a folder of runs."""
        files = [part for file in (*shared.files, _arm_file(self.arm)) for part in ("--config", str(file))]
        own = [f"seed={self.seed}", f"run_dir={folder / self.name}"]
        if self.start:
            own.append(f"model.policy={folder / self.start / RESULTS['sft']}")
        return [sys.executable, "-m", "pipelines", self.stage, *files, *shared.overrides, *own]


class BenchError(RuntimeError):
    """Runs that failed, of `count` in a folder; the message names each with its log."""

    def __init__(self, failures: list[Run], count: int, folder: Path) -> None:
        logs = ", ".join(f"{run.name} ({folder / run.name}.log)" for run in failures)
        super().__init__(f"{len(failures)} of {count} runs failed: {logs}; repeat the command for them")


def bench(shared: Bench, arms: list[str], seeds: int) -> str:
    """Run what is missing in `run_dir`, in folders ARM-SEED, and return the tables.

    Raises:
        ConfigError: an arm has no file, or a setting is wrong; nothing has run.
        BenchError: some runs failed; the others are complete.
    """
    in_words = [arm for arm in arms if shared.settings(arm).agent.refinement == "text"]
    config = shared.settings()
    folder = config.run_dir
    folder.mkdir(parents=True, exist_ok=True)
    connect(config)
    ensure_dataset(config)  # now: the runs would make it all at once
    ray.shutdown()
    if in_words and not DatasetFolder(config.data.root).rewrites().is_file():
        write_rewrites(config)

    def play(run: Run, slot: int) -> int:
        visible = {"CUDA_VISIBLE_DEVICES": str(slot % shared.gpus)} if shared.gpus else {}
        if run.stage == "grpo":  # which does not go on from what a failed run has left
            shutil.rmtree(folder / run.name, ignore_errors=True)
        with (folder / f"{run.name}.log").open("a") as log:
            command, env = run.command(shared, folder), os.environ | visible
            return subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=env, check=False).returncode

    for runs in plan(arms, seeds, in_words):
        wanted = missing(runs, folder)
        failures = play_all(wanted, shared.at_once, play, shared.say)
        if failures:
            raise BenchError(failures, len(wanted), folder)
    return results(folder)


def plan(arms: list[str], seeds: int, in_words: list[str]) -> tuple[list[Run], list[Run]]:
    """Return all runs of Stage 1, and those that start from them.

    Args:
        arms: that are trained.
        seeds: 0, 1, ... of everything.
        in_words: those of the arms that refine in new words; they share a Stage 1, with the settings of the first.
    """
    settings = {STAGE_1: STAGE_1} | ({STAGE_1_TEXT: in_words[0]} if in_words else {})
    stage_1 = [Run(f"{name}-{seed}", "sft", arm, seed) for (name, arm), seed in product(settings.items(), range(seeds))]
    evaluations = [Run(f"{STAGE_1}-{seed}", "eval", STAGE_1, seed, f"{STAGE_1}-{seed}") for seed in range(seeds)]
    trainings = [
        Run(f"{arm}-{seed}", "grpo", arm, seed, f"{STAGE_1_TEXT if arm in in_words else STAGE_1}-{seed}")
        for seed, arm in product(range(seeds), arms)
    ]
    return stage_1, evaluations + trainings


def missing(runs: list[Run], folder: Path) -> list[Run]:
    """Return the runs that have not ended in a folder of runs."""
    return [run for run in runs if not (folder / run.name / RESULTS[run.stage]).exists()]


def play_all(
    runs: list[Run],
    at_once: int,
    play: Callable[[Run, int], int],
    say: Callable[[str], None],
    apart_s: float = APART_S,
) -> list[Run]:
    """Play runs, at most `at_once` at one time, and return those that failed.

    Args:
        runs: in the order in which they begin.
        at_once: slots.
        play: gets a run and the number of its slot, which no other run has meanwhile; returns an exit code.
        say: shows a line of text.
        apart_s: seconds between two starts.
    """
    slots: SimpleQueue[int] = SimpleQueue()
    starting = Lock()
    for slot in range(at_once):
        slots.put(slot)

    def exit_code(run: Run) -> int:
        slot = slots.get()
        with starting:
            time.sleep(apart_s)
        say(f"{run.name}: {run.stage} begins")
        code = play(run, slot)
        slots.put(slot)
        say(f"{run.name}: {run.stage} {'failed' if code else 'is complete'}")
        return code

    with ThreadPoolExecutor(at_once) as pool:
        codes = pool.map(exit_code, runs)
        return [run for run, code in zip(runs, codes, strict=True) if code]


def arm_names() -> list[str]:
    """Return every arm that is trained, by the files that describe them."""
    return sorted(file.stem for file in ARMS.glob("*.yaml") if file.stem != STAGE_1)


def _arm_file(arm: str) -> Path:
    return ARMS / f"{arm}.yaml"
