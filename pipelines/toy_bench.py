"""The toy benchmark in one go: Stage 1 for every seed, its evaluation, then every arm from it. `vsr1 toy bench`.

Each run is a process of its own with a Ray of its own, on one of the machine's GPUs; several share a GPU. What a run
prints goes to `RUN.log` beside its folder. A run that ended before is not made again, so the command can be repeated.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from queue import SimpleQueue
from threading import Lock

import ray

from pipelines.data.build import ensure_dataset
from pipelines.services import connect
from pipelines.toy_results import results
from pipelines.toy_rewrites import write_rewrites
from vsr1.config import Config, load_config
from vsr1.formats.dataset import DatasetFolder

ARMS = Path(__file__).parent.parent / "configs" / "arms"
STAGE_1 = "sft"  # the arm that is only evaluated
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


def bench(runs: Bench, arms: list[str], seeds: int) -> str:
    """Run what is missing in `run_dir`, in folders ARM-SEED, and return the tables.

    Raises:
        BenchError: some runs failed; the others are complete.
    """
    configs = {arm: runs.settings(arm) for arm in arms}
    folder = runs.settings().run_dir
    folder.mkdir(parents=True, exist_ok=True)
    texts = {arm for arm, config in configs.items() if config.agent.refinement == "text"}
    _make_data(runs.settings(), rewrites=bool(texts))
    start = {arm: "sfttext" if arm in texts else STAGE_1 for arm in arms}
    numbers = range(seeds)
    first = [(name, seed) for name, seed in product(dict.fromkeys([STAGE_1, *start.values()]), numbers)]
    text_arm = next(iter(texts), STAGE_1)
    _all(
        runs,
        folder,
        {
            f"{name}-{seed}": ("sft", text_arm if name == "sfttext" else STAGE_1, seed, [])
            for name, seed in first
            if not _stage_1(folder, name, seed).is_dir()
        },
    )
    evaluated = {
        f"{STAGE_1}-{seed}": ("eval", STAGE_1, seed, [f"model.policy={_stage_1(folder, STAGE_1, seed)}"])
        for seed in numbers
        if not (folder / f"{STAGE_1}-{seed}" / "eval.json").is_file()
    }
    trained = {
        f"{arm}-{seed}": ("grpo", arm, seed, [f"model.policy={_stage_1(folder, start[arm], seed)}"])
        for seed, arm in product(numbers, arms)
        if not (folder / f"{arm}-{seed}" / "after.json").is_file()
    }
    _all(runs, folder, evaluated | trained)
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


def _all(runs: Bench, folder: Path, wanted: dict[str, tuple[str, str, int, list[str]]]) -> None:
    """Run commands by name: stage, arm, seed and more overrides."""
    slots: SimpleQueue[int] = SimpleQueue()
    starting = Lock()
    for number in range(runs.at_once):
        slots.put(number)

    def run(name: str) -> str | None:
        stage, arm, seed, more = wanted[name]
        slot = slots.get()
        with starting:
            time.sleep(APART_S)
        runs.say(f"{name}: {stage} begins")
        code = _command(runs, folder, name, slot, [stage, *_files([*runs.files, _arm_file(arm)])], seed, more)
        slots.put(slot)
        runs.say(f"{name}: {stage} {'done' if code == 0 else f'failed with {code}'}")
        return None if code == 0 else f"{name} ({folder / f'{name}.log'})"

    with ThreadPoolExecutor(runs.at_once) as pool:
        failed = [named for named in pool.map(run, wanted) if named]
    if failed:
        raise BenchError(
            f"{len(failed)} of {len(wanted)} runs failed: {', '.join(failed)}; repeat the command for them"
        )


def _command(runs: Bench, folder: Path, name: str, slot: int, stage: list[str], seed: int, more: list[str]) -> int:
    overrides = [*runs.overrides, *more, f"seed={seed}", f"run_dir={folder / name}"]
    shown = {"CUDA_VISIBLE_DEVICES": str(slot % runs.gpus)} if runs.gpus else {}
    with (folder / f"{name}.log").open("a") as log:
        return subprocess.run(
            [sys.executable, "-m", "pipelines.cli", *stage, *overrides],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | shown,
            check=False,
        ).returncode


def _files(files: Iterable[Path]) -> list[str]:
    return [part for file in files for part in ("--config", str(file))]
