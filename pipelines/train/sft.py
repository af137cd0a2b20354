"""Stage 1: replies and refined queries by example, DeepSpeed under Ray Train, records streamed by Ray Data."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from actors.logs import log_to
from pipelines.data.build import ensure_dataset
from pipelines.machine.placement import check_placement
from pipelines.stage.connection import connect
from pipelines.stage.post_mortem import kept_in_folder
from pipelines.stage.progress import QUIET, Load, Progress
from pipelines.train.clip_stream import clip_of, with_clips
from pipelines.train.records import record_example, record_rows, rows_in_order, rows_of_rank
from vsr1.config import RENAMED, Config
from vsr1.formats.dataset import DatasetFolder
from vsr1.formats.digest import lines_sha256
from vsr1.rl.batch import annealed
from vsr1.rl.flops import learner_speed
from vsr1.runs.scalars import SCALARS, RunLog, ScalarTail
from vsr1.runs.state import StateFolder
from vsr1.search.prompts import agent_prompt
from vsr1.video.clips import Clip, ClipFolder, ClipReference

LAST_SCALAR = "tokens_per_second"  # of a step, in the order that they are logged


class SftError(RuntimeError):
    """Training that stopped; the message names the ranks and what each of them said."""


def train(config: Config, progress: Progress = QUIET) -> Path:
    """Run Stage 1 and return the checkpoint folder it wrote.

    A stock checkpoint as `model.policy` gets the refine token and new heads first, in `run_dir/checkpoints/start`.
    A run that was stopped goes on from its last state in `run_dir/state/sft`, to the bit: rows, their order and their
    ranks follow from the seed and the step alone. All ranks must see `run_dir`.

    Raises:
        FileNotFoundError: the SFT records are missing.
        StateError: `run_dir` holds a state of other settings.
        SftError: a rank failed or died.
    """
    with kept_in_folder(config, "sft"):
        connect(config)
        check_placement(config, "sft")
        ensure_dataset(config)
        return _train(config, progress)


def _train(config: Config, progress: Progress) -> Path:
    folder = DatasetFolder(config.data.root)
    rows = record_rows(folder, with_rewrites=config.agent.refinement == "text")
    ranks = config.sft.learner.ranks
    per_rank = max(1, config.sft.batch_size // ranks)
    steps = len(rows) // (per_rank * ranks) * config.sft.epochs
    steps = min(steps, config.sft.max_steps or steps)
    if steps == 0:
        raise ValueError(f"{len(rows)} records do not fill one batch of {config.sft.batch_size}; lower sft.batch_size")
    config = _with_heads(config)
    settings = _settings(config, rows, steps)
    states = _states(config)
    done, state = states.newest() or (0, None)
    if state is not None:
        states.check(state, settings, RENAMED)
    ordered = list(islice(rows_in_order(rows, config.seed), steps * per_rank * ranks))
    clips = ClipFolder(folder.clips("train"), config.data.timestamps)
    need = config.cluster.learner
    trainer = TorchTrainer(
        train_rank,
        train_loop_config={
            "config": config.model_dump(mode="json"),
            "steps": steps,
            "per_rank": per_rank,
            "settings": settings,
            "state": state,
            "streams": [
                with_clips(rows_of_rank(ordered, rank, ranks, per_rank, done), clips, per_rank) for rank in range(ranks)
            ],
        },
        torch_config=TorchConfig(backend="gloo" if config.model.device == "cpu" else "nccl"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=ranks,
            use_gpu=need.gpus > 0,
            resources_per_worker={"CPU": need.cpus} | ({"GPU": need.gpus} if need.gpus else {}),
        ),
        run_config=ray.train.RunConfig(name="sft", storage_path=str(config.run_dir / "ray_train")),
    )
    display = _Display(config.run_dir / SCALARS, progress)
    with ThreadPoolExecutor(1) as pool:
        fitting = pool.submit(trainer.fit)
        progress.begin("sft", steps, {"learner": ranks})
        progress.now("training", learner=Load(ranks))
        while not wait([fitting], timeout=1.0).done:
            display.update()
        display.update()
        try:
            fitting.result()
        except ray.train.WorkerGroupError as error:
            raise _named(error) from error
    return config.run_dir / "checkpoints" / "sft"


def train_rank(settings: dict[str, Any]) -> None:
    """Train as one rank; what each Ray Train worker runs."""
    import torch

    from vsr1.model.processor import ClipProcessor
    from vsr1.rl.example_loss import load_vectors
    from vsr1.rl.learner import Learner

    config = Config.model_validate(settings["config"])
    rank = ray.train.get_context().get_world_rank()
    log_to(config.run_dir / "logs" / f"learner-{rank}.log")
    steps, per_rank, states = settings["steps"], settings["per_rank"], _states(config)
    vectors = load_vectors(DatasetFolder(config.data.root), "train")
    processor, system = ClipProcessor(config.model.policy), agent_prompt(config.agent)
    clips: dict[ClipReference, Clip] = {}  # of one step
    torch.manual_seed(config.seed * 1000 + rank)
    learner = Learner(config.sft, config.model, config.agent, vectors, clips.__getitem__)
    if settings["state"] is not None:
        learner.load_state(settings["state"])

    def save_state() -> None:
        with states.saving(learner.steps, settings["settings"]) if rank == 0 else nullcontext():
            torch.distributed.barrier()
            learner.save_state(states.part(learner.steps))
        torch.distributed.barrier()

    rows = iter(settings["streams"][rank].iter_rows()) if learner.steps < steps else iter(())
    with RunLog(config.run_dir) if rank == 0 else nullcontext() as log:
        for step in range(learner.steps + 1, steps + 1):
            began = time.monotonic()
            clips.clear()
            examples = []
            for row in islice(rows, per_rank):
                clip = clip_of(row)
                clips[clip.reference] = clip
                examples.append(record_example(row, clip, processor, system, config.sft.negatives))
            read = time.monotonic()
            rate = config.sft.learner.learning_rate * annealed((step - 1) / steps)
            metrics = learner.step(examples, rate) | {"learning_rate": rate}
            ended = time.monotonic()
            metrics |= {"seconds/data": read - began, "seconds/learn": ended - read}
            metrics[LAST_SCALAR] = metrics["tokens"] / (ended - began)
            if log:  # before the state: a run that goes on from it must find all steps before it in the log
                log.log("sft", step, metrics)
            if step == steps or (config.sft.save_every and step % config.sft.save_every == 0):
                save_state()
    learner.save(config.run_dir / "checkpoints" / "sft")


def _with_heads(config: Config) -> Config:
    """Return the configuration with a policy folder that has heads: a stock checkpoint gets new ones, once a run."""
    # Here, because it is slow to import and all of Ray Train's processes import this module.
    from vsr1.model.new_policy import lacks_heads, write_new_policy

    if not lacks_heads(config.model.policy, allow_bin=config.model.allow_bin):
        return config
    start = config.run_dir / "checkpoints" / "start"
    if not start.is_dir():
        write_new_policy(config.model.policy, config.model.embedder, start, seed=config.seed)
    return config.model_copy(update={"model": config.model.model_copy(update={"policy": start})})


def _states(config: Config) -> StateFolder:
    return StateFolder(config.run_dir / "state" / "sft")


def _settings(config: Config, rows: list[dict[str, Any]], steps: int) -> dict[str, Any]:
    """Return all that decides what a step does, as a JSON value; a state is continued under the same only."""
    speed = {"compile", "vision_cache_gib"}  # change how fast a step is, not what it does
    sft = config.sft.model_dump(
        mode="json", exclude={"save_every": True, "epochs": True, "max_steps": True, "learner": speed}
    )
    return {
        "seed": config.seed,
        "model": config.model.model_dump(mode="json"),
        "data": {"timestamps": config.data.timestamps},
        "agent": {"latents": config.agent.depth, "system_prompt": agent_prompt(config.agent)},
        "sft": sft,
        "steps (sft.max_steps, sft.epochs)": steps,
        "training records (sha256)": lines_sha256(rows),
    }


def _named(error: Any) -> SftError:
    """Return the failure by rank; ranks that only lost their connection come after those that failed by themselves."""
    failures = sorted(error.worker_failures.items(), key=lambda item: "gloo" in str(item[1]) or "NCCL" in str(item[1]))
    reasons = "; ".join(
        f"learner rank {rank}: {(str(cause).strip() or repr(cause)).splitlines()[-1]}" for rank, cause in failures
    )
    return SftError(f"Stage 1 stopped. {reasons}. The same command goes on from the last saved state")


class _Display:
    """Reports the steps that rank 0 logs from now on, each once."""

    def __init__(self, path: Path, progress: Progress) -> None:
        self._path, self._tail, self._progress = path, ScalarTail(path), progress
        self._values: dict[str, float] = {}  # of the step that is being read
        self._ended: float | None = None  # when the last step was logged, seconds since 1970
        if path.is_file():  # what earlier runs have logged
            self._tail.read()

    def update(self) -> None:
        for row in self._tail.read() if self._path.is_file() else []:
            if row["stage"] == "sft":
                self._values[row["name"]] = row["value"]
            if (row["stage"], row["name"]) == ("sft", LAST_SCALAR):
                seconds = {} if self._ended is None else {"step": row["time"] - self._ended}
                shown = {"loss": self._values["loss"]} | learner_speed(self._values)
                self._progress.step(row["step"], shown, seconds)
                self._ended = row["time"]
