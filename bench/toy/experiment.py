"""The toy benchmark in one go: models and corpora, Stage 1 for every seed, its evaluation, then every arm from it.

`python -m bench toy run`.

Each run is a process of its own with a Ray of its own, on one of the machine's GPUs; several share a GPU. What a run
prints goes to `RUN.log` beside its folder, and what an evaluated one scored to `lines.jsonl`, a line of JSON each. A
run that ended before is not made again, so the command can be repeated.

An arm is a file of `configs/arms/`, with any number of `configs/methods/` after it: `infonce+branches+black`.
"""

from __future__ import annotations

import json
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

from bench.toy.results import result_lines, results
from vsr1.config import Config, load_config
from vsr1.formats.atomic import write_json

CONFIGS = Path(__file__).parents[2] / "configs"
ARMS, METHODS = CONFIGS / "arms", CONFIGS / "methods"
STAGE_1 = "sft"  # the arm that is only evaluated
STAGE_1_TEXT = "sfttext"  # Stage 1 of arms that refine in new words
FURTHER = {"longer", "ceiling"}  # arms that are more of Stage 1
RESULTS = {  # what a stage that ended leaves
    "pretrain": "model.json", "data": "data.json", "sft": "checkpoints/sft", "eval": "eval.json", "grpo": "after.json",
}  # fmt: skip
# Other embedders than the shipped one, each in a folder of `run_dir`/models.
MODELS = {"black": ("--policy-steps", "0", "--corpora", "8", "--seed", "1")}
LINES = "lines.jsonl"
APART_S = 1.0  # between starts: two Rays that start at one time can find the same port free
_writing = Lock()


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
        return load_config([*self.files, *arm_files(arm)], list(self.overrides))


@dataclass(frozen=True)
class Run:
    """One command: a stage with the settings of an arm, in the folder `name`, from the checkpoint `start`."""

    name: str
    stage: str
    arm: str
    seed: int = 0
    start: str | None = None  # below the folder of all runs; None: the policy of the settings
    own: tuple[str, ...] = ()  # further settings; of `pretrain` its options

    def command(self, shared: Bench, folder: Path) -> list[str]:
        """Return the arguments of the process that makes this run in a folder of runs."""
        if self.stage == "pretrain":
            device = "cuda" if shared.gpus else "cpu"
            start = ("--start", str(shared.settings().model.embedder.parent), "--device", device)
            return [
                sys.executable,
                "-m",
                "bench",
                "toy",
                "pretrain",
                "--out",
                str(folder / self.name),
                *start,
                *self.own,
            ]
        files = [part for file in (*shared.files, *arm_files(self.arm)) for part in ("--config", str(file))]
        own = [f"seed={self.seed}", f"run_dir={folder / self.name}", *self.own]
        if self.start:
            own.append(f"model.policy={folder / self.start}")
        program = ("bench", "toy") if self.stage == "data" else ("pipelines",)
        return [sys.executable, "-m", *program, self.stage, *files, *shared.overrides, *own]


class BenchError(RuntimeError):
    """Runs that failed, of `count` in a folder; the message names each with its log."""

    def __init__(self, failures: list[Run], count: int, folder: Path) -> None:
        logs = ", ".join(f"{run.name} ({folder / run.name}.log)" for run in failures)
        super().__init__(f"{len(failures)} of {count} runs failed: {logs}; repeat the command for them")


def bench(shared: Bench, arms: list[str], seeds: range, splits: tuple[str, ...] = ()) -> str:
    """Run what is missing in `run_dir`, in folders ARM-SEED, and return the tables.

    Args:
        seeds: of weights and batches; the films are those of the settings' seed for all of them.
        splits: that every arm is evaluated on besides `eval.split`, in folders ARM@SPLIT-SEED.

    Raises:
        ConfigError: an arm has no file, or a setting is wrong; nothing has run.
        BenchError: some runs failed; the others are complete.
    """
    settings = {arm: shared.settings(arm) for arm in (STAGE_1, *arms)}
    in_words = [arm for arm in arms if settings[arm].agent.refinement == "text"]
    folder = settings[STAGE_1].run_dir
    folder.mkdir(parents=True, exist_ok=True)

    def play(run: Run, slot: int) -> int:
        code = exit_code(run, folder, run.command(shared, folder), slot, shared.gpus)
        if not code and run.stage in ("eval", "grpo"):
            with _writing, (folder / LINES).open("a") as lines:
                lines.writelines(json.dumps(line) + "\n" for line in result_lines(folder / run.name))
        return code

    for runs in (*sources(settings, folder), *plan(arms, seeds, in_words, splits)):
        wanted = missing(runs, folder)
        failures = play_all(wanted, shared.at_once, play, shared.say)
        if failures:
            raise BenchError(failures, len(wanted), folder)
    return results(folder)


def sources(settings: dict[str, Config], folder: Path) -> tuple[list[Run], list[Run]]:
    """Return the runs that make models and corpora: those that need nothing, and those that need a model of these.

    Args:
        settings: of every arm.
    """
    named = {config.model.embedder for config in settings.values()}
    models = [
        Run(f"models/{name}", "pretrain", STAGE_1, own=options)
        for name, options in MODELS.items()
        if folder / "models" / name / "embedder" in named
    ]
    first, second = list(models), list[Run]()
    in_words = any(config.agent.refinement == "text" for config in settings.values())
    by_traces = sorted(settings.items(), key=lambda item: item[1].data.teacher.kind == "none")  # with traces: first
    for arm, config in {config.data.root: (arm, config) for arm, config in reversed(by_traces)}.values():
        own = (f"seed={config.seed}", *(("agent.refinement=text",) if in_words and arm == STAGE_1 else ()))
        run = Run(f"data-{config.data.root.name}-{config.data.teacher.kind}", "data", arm, own=own)
        (second if folder / "models" in config.model.embedder.parents else first).append(run)
    return first, second


def plan(
    arms: list[str], seeds: range, in_words: list[str], splits: tuple[str, ...] = ()
) -> tuple[list[Run], list[Run], list[Run]]:
    """Return all runs of Stage 1, those that start from them, and those that evaluate what these have trained.

    Args:
        arms: that are trained.
        seeds: of everything but the films.
        in_words: those of the arms that refine in new words; they share a Stage 1, with the settings of the first.
        splits: further ones that every arm is evaluated on.
    """
    settings = {STAGE_1: STAGE_1} | ({STAGE_1_TEXT: f"{in_words[0]}+{STAGE_1}"} if in_words else {})
    stage_1 = [Run(f"{name}-{seed}", "sft", arm, seed) for (name, arm), seed in product(settings.items(), seeds)]
    trained, evaluations = list[Run](), list[Run]()
    for seed, arm in product(seeds, (STAGE_1, *arms)):
        name, stage = f"{arm}-{seed}", "sft" if arm in (STAGE_1, *FURTHER) else "grpo"
        checkpoint = f"{name}/checkpoints/{stage}"
        if arm == STAGE_1:
            trained.append(Run(name, "eval", arm, seed, checkpoint))
        else:
            first = STAGE_1_TEXT if arm in in_words else STAGE_1
            trained.append(Run(name, stage, arm, seed, f"{first}-{seed}/checkpoints/sft"))
        if arm in FURTHER:
            evaluations.append(Run(name, "eval", arm, seed, checkpoint))
        evaluations += [
            Run(f"{arm}@{split}-{seed}", "eval", arm, seed, checkpoint, (f"eval.split={split}",)) for split in splits
        ]
    return stage_1, trained, evaluations


def make_data(config: Config) -> None:
    """Render and build the corpus of a run of the benchmark, with the texts that `agent.refinement=text` learns from.

    `run_dir`/data.json says how long it took.
    """
    import ray

    from bench.toy.rewrites import write_rewrites
    from pipelines.data.build import ensure_dataset
    from pipelines.stage.connection import connect

    began = time.monotonic()
    connect(config)
    ensure_dataset(config)
    ray.shutdown()
    if config.agent.refinement == "text":
        write_rewrites(config)
    config.run_dir.mkdir(parents=True, exist_ok=True)
    values = {"root": str(config.data.root), "seconds": round(time.monotonic() - began, 1)}
    write_json(config.run_dir / RESULTS["data"], values)


def missing(runs: list[Run], folder: Path) -> list[Run]:
    """Return the runs that have not ended in a folder of runs."""
    return [run for run in runs if not (folder / run.name / RESULTS[run.stage]).exists()]


def exit_code(run: Run, folder: Path, command: list[str], slot: int, gpus: int) -> int:
    """Run the process of a run, with its output in `FOLDER/NAME.log`, and return its exit code.

    Args:
        slot: place among the runs of one time; it chooses the GPU.
        gpus: of this machine.
    """
    if run.stage == "grpo":  # which does not go on from what a failed run has left
        shutil.rmtree(folder / run.name, ignore_errors=True)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(number) for number in range(gpus)]
    env = os.environ | ({"CUDA_VISIBLE_DEVICES": names[slot % gpus]} if gpus else {})
    with (folder / f"{run.name.replace('/', '-')}.log").open("a") as log:
        return subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=env, check=False).returncode


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


def arm_files(arm: str) -> list[Path]:
    """Return the files of an arm, later ones winning: a method where there is none of this name among the arms."""
    names = arm.split("+")
    return [
        METHODS / f"{name}.yaml" if (METHODS / f"{name}.yaml").is_file() else ARMS / f"{name}.yaml" for name in names
    ]
