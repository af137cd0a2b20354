"""The toy benchmark in one go: Stage 1 for every seed, its evaluation, then every arm from it.

`python -m bench toy run`.

Each run is a process of its own with a Ray of its own, on one of the machine's GPUs; several share a GPU. What a run
prints goes to `RUN.log` beside its folder. A run that ended before is not made again, so the command can be repeated.
"""

from __future__ import annotations

import os
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
APART_S = 1.0  # between starts: two Rays that start at one time can find the same port free


class BenchError(RuntimeError):
    """Runs that failed; the message names each with its log."""


@dataclass(frozen=True)
class Bench:
    """What all runs share.

    Attributes:
        files: configuration files. overrides: `key=value` of every run.
        at_once: runs at one time. gpus: of this machine; 0 runs on the CPU.
    """

    files: tuple[Path, ...]
    overrides: tuple[str, ...]
    at_once: int
    gpus: int
    say: Callable[[str], None]

    def settings(self, arm: str = STAGE_1) -> Config:
        """Raises ConfigError, also for an arm that has no file."""
        return load_config([*self.files, _arm_file(arm)], list(self.overrides))


@dataclass(frozen=True)
class Run:
    """One command: its stage with the settings of an arm, in the folder `name`."""

    name: str
    stage: str
    arm: str
    seed: int
    policy: Path | None = None  # it starts from; None: that of the settings


def bench(shared: Bench, arms: list[str], seeds: int) -> str:
    """Run what is missing in `run_dir`, in folders ARM-SEED, and return the tables.

    Raises:
        BenchError: some runs failed; the others are complete.
    """
    texts = [arm for arm in arms if shared.settings(arm).agent.refinement == "text"]
    folder = shared.settings().run_dir
    folder.mkdir(parents=True, exist_ok=True)
    _make_data(shared.settings(), rewrites=bool(texts))
    first = {STAGE_1: STAGE_1} | ({STAGE_1_TEXT: texts[0]} if texts else {})
    _all(
        shared,
        folder,
        [
            Run(f"{name}-{seed}", "sft", arm, seed)
            for (name, arm), seed in product(first.items(), range(seeds))
            if not _stage_1(folder, name, seed).is_dir()
        ],
    )
    evaluated = [
        Run(f"{STAGE_1}-{seed}", "eval", STAGE_1, seed, _stage_1(folder, STAGE_1, seed))
        for seed in range(seeds)
        if not (folder / f"{STAGE_1}-{seed}" / "eval.json").is_file()
    ]
    trained = [
        Run(f"{arm}-{seed}", "grpo", arm, seed, _stage_1(folder, STAGE_1_TEXT if arm in texts else STAGE_1, seed))
        for seed, arm in product(range(seeds), arms)
        if not (folder / f"{arm}-{seed}" / "after.json").is_file()
    ]
    _all(shared, folder, evaluated + trained)
    return results(folder)


def arm_names() -> list[str]:
    """Every arm that is trained, by the files that describe them."""
    return sorted(file.stem for file in ARMS.glob("*.yaml") if file.stem != STAGE_1)


def _arm_file(arm: str) -> Path:
    return ARMS / f"{arm}.yaml"


def _stage_1(folder: Path, name: str, seed: int) -> Path:
    return folder / f"{name}-{seed}" / "checkpoints" / "sft"


def _make_data(config: Config, *, rewrites: bool) -> None:
    """The dataset before the runs, which would make it all at once."""
    connect(config)
    ensure_dataset(config)
    ray.shutdown()
    if rewrites and not DatasetFolder(config.data.root).rewrites().is_file():
        write_rewrites(config)


def _all(shared: Bench, folder: Path, wanted: list[Run]) -> None:
    slots: SimpleQueue[int] = SimpleQueue()
    starting = Lock()
    for number in range(shared.at_once):
        slots.put(number)

    def ended(run: Run) -> int:
        slot = slots.get()
        with starting:
            time.sleep(APART_S)
        shared.say(f"{run.name}: {run.stage} begins")
        code = _command(shared, folder, run, slot)
        slots.put(slot)
        shared.say(f"{run.name}: {run.stage} {'failed' if code else 'done'}")
        return code

    with ThreadPoolExecutor(shared.at_once) as pool:
        codes = list(pool.map(ended, wanted))
    failed = [f"{run.name} ({folder / run.name}.log)" for run, code in zip(wanted, codes, strict=True) if code]
    if failed:
        raise BenchError(
            f"{len(failed)} of {len(wanted)} runs failed: {', '.join(failed)}; repeat the command for them"
        )


def _command(shared: Bench, folder: Path, run: Run, slot: int) -> int:
    """The exit code of a run."""
    files = [part for file in (*shared.files, _arm_file(run.arm)) for part in ("--config", str(file))]
    own = [f"seed={run.seed}", f"run_dir={folder / run.name}", *([f"model.policy={run.policy}"] if run.policy else [])]
    shown = {"CUDA_VISIBLE_DEVICES": str(slot % shared.gpus)} if shared.gpus else {}
    with (folder / f"{run.name}.log").open("a") as log:
        return subprocess.run(
            [sys.executable, "-m", "pipelines", run.stage, *files, *shared.overrides, *own],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | shown,
            check=False,
        ).returncode
