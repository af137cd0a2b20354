"""Stage 1: replies and refined queries by example, DeepSpeed under Ray Train, records streamed by Ray Data."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from actors.logs import log_to
from pipelines.data.build import ensure_dataset
from pipelines.machine.placement import check_placement
from pipelines.machine.resources import check_packages
from pipelines.stage.connection import connect
from pipelines.stage.faults import last_line, reason
from pipelines.stage.post_mortem import kept_in_folder
from pipelines.stage.progress import QUIET, Load, Progress
from pipelines.train.clip_stream import clip_of, with_clips
from pipelines.train.environments import training_of
from pipelines.train.record_checks import check_checkpoints
from pipelines.train.records import held_out, record_example, rows_in_order, rows_of_rank
from pipelines.train.step_display import LAST_SCALAR, StepDisplay
from vsr1.config import RENAMED, Config
from vsr1.environments.registry import environment_of
from vsr1.formats.dataset import TRAIN, DatasetFolder
from vsr1.formats.digest import lines_sha256
from vsr1.navigate.examples import spoken_example
from vsr1.rl.batch import Example
from vsr1.rl.schedule import learning_rate, of_all_batches
from vsr1.runs.checkpoints import Best
from vsr1.runs.mirror import bring, push
from vsr1.runs.scalars import SCALARS, RunLog
from vsr1.runs.state import StateFolder
from vsr1.search.prompts import agent_prompt
from vsr1.settings.training import SftConfig
from vsr1.storage import sent_folder
from vsr1.video.clips import Clip, ClipFolder, ClipReference

DEFAULTS = {"sft": SftConfig().model_dump(mode="json")}  # for states of before a setting was there
UNDECIDED = ("save_every", "epochs", "max_steps", "save_total_limit", "validate_every", "keep_best")  # change no step
SPEED = {"compile", "vision_cache_gib"}  # of the learner: how fast a step is, not what it does


class SftError(RuntimeError):
    """Training that stopped; the message names the ranks and what each of them said."""


def train(config: Config, progress: Progress = QUIET) -> Path:
    """Run Stage 1 and return the checkpoint folder it wrote.

    A stock checkpoint as `model.policy` gets the refine token and new heads first, in `run_dir/checkpoints/start`.
    A run that was stopped goes on from its last state in `run_dir/state/sft`, to the bit: rows, their order and their
    ranks follow from the seed and the step alone. All ranks must see `run_dir`.

    Raises:
        FileNotFoundError: the SFT records are missing.
        StateError: `run_dir` holds a run of other settings.
        RunFolderError: another process trains in `run_dir`.
        SftError: a rank failed or died.
    """
    bring(config.run_dir, "sft")
    records = check(config)
    with kept_in_folder(config, "sft"):
        if config.tracking.wandb:
            check_packages("wandb", fix="pip install 'vsr1[wandb]', or leave tracking.wandb out")
        connect(config)
        check_placement(config, "sft")
        if ensure_dataset(config) or records is None:
            records = _records(config)
        return _train(_plan(config, records), progress)


@dataclass(frozen=True)
class _Records:
    rows: list[dict[str, Any]]
    held: list[dict[str, Any]]  # of the evaluations
    steps: int


def check(config: Config) -> _Records | None:
    """See that a run can start, as far as dataset and run folder tell by themselves; errors as of `train`.

    Returns:
        What it trains on; None where the dataset has still to be built.
    """
    check_checkpoints(config)
    began = _states(config).root.exists()
    if config.toy.create and not began and not environment_of(config).sft_file(config).is_file():
        return None
    records = _records(config)
    if began:  # another run is refused
        _plan(config, records)
    return records


def _records(config: Config) -> _Records:
    """Read the records.

    Raises:
        RecordError: some cannot be used.
        ValueError: they do not fill a batch.
    """
    rows, held = held_out(training_of(config).sft_rows(config), config.sft.val_records, config.seed)
    batch = config.sft.batch_size
    steps = len(rows) // batch * config.sft.epochs
    steps = min(steps, config.sft.max_steps or steps)
    if steps == 0:
        raise ValueError(f"{len(rows)} records do not fill one batch of {batch}; lower sft.batch_size")
    return _Records(rows, held, steps)


@dataclass(frozen=True)
class _Plan:
    config: Config  # with a policy that has heads
    records: _Records
    settings: dict[str, Any]
    done: int  # steps of the state that the run goes on from
    state: Path | None


def _plan(config: Config, records: _Records) -> _Plan:
    """Return what a run has to do, and has done.

    Raises:
        StateError: the folder holds a run of other settings.
    """
    config = _with_heads(config)
    settings = _settings(config, records.rows, records.steps)
    done, state = _states(config).claim(settings, RENAMED, DEFAULTS) or (0, None)
    return _Plan(config, records, settings, done, state)


def _train(plan: _Plan, progress: Progress) -> Path:
    config, records = plan.config, plan.records
    steps, ranks = records.steps, config.sft.learner.ranks
    per_rank = config.sft.batch_size // ranks
    clips, streams = _clips(config, records.rows), list[ray.data.DataIterator]()
    if clips is not None:
        ordered = list(islice(rows_in_order(records.rows, config.seed), steps * config.sft.batch_size))
        parts = (list(rows_of_rank(ordered, rank, ranks, per_rank, plan.done)) for rank in range(ranks))
        streams = [with_clips(part, clips, per_rank) for part in parts]
    need = config.cluster.learner
    trainer = TorchTrainer(
        train_rank,
        train_loop_config={
            "config": config.model_dump(mode="json"),
            "steps": steps,
            "per_rank": per_rank,
            "settings": plan.settings,
            "rows": ray.put(records.rows) if clips is None else None,
            "state": plan.state,
            "held": [records.held[rank::ranks] for rank in range(ranks)],
            "streams": streams,
        },
        torch_config=TorchConfig(backend="gloo" if config.model.device == "cpu" else "nccl"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=ranks,
            use_gpu=need.gpus > 0,
            resources_per_worker={"CPU": need.cpus} | ({"GPU": need.gpus} if need.gpus else {}),
            placement_strategy=need.strategy.upper(),
            label_selector=need.labels or None,
        ),
        run_config=ray.train.RunConfig(name="sft", storage_path=str(config.run_dir / "ray_train")),
    )
    display = StepDisplay(config.run_dir / SCALARS, progress)
    faults: list[BaseException] = []
    fitting = threading.Thread(target=_fit, args=(trainer, faults), daemon=True)  # a signal finds this thread free
    fitting.start()
    progress.begin("sft", steps, {"learner": ranks})
    progress.now("training", learner=Load(ranks))
    while fitting.is_alive():
        fitting.join(1.0)
        display.update()
    display.update()
    for fault in faults:
        raise _named(fault, _states(config)) if isinstance(fault, ray.train.WorkerGroupError) else fault
    return config.run_dir / "checkpoints" / "sft"


def _fit(trainer: TorchTrainer, faults: list[BaseException]) -> None:
    """Run Ray Train, which would keep a thread that waits for it from hearing of signals."""
    try:
        trainer.fit()
    except BaseException as fault:  # of any kind: the thread that waits raises it
        faults.append(fault)


def train_rank(settings: dict[str, Any]) -> None:
    """Train as one rank; what each Ray Train worker runs."""
    import torch

    from vsr1.model.processor import ClipProcessor
    from vsr1.rl.learner import Learner

    config = Config.model_validate(settings["config"])
    rank = ray.train.get_context().get_world_rank()
    log_to(config.run_dir / "logs" / f"learner-{rank}.log")
    steps, per_rank, states = settings["steps"], settings["per_rank"], _states(config)
    vectors = environment_of(config).vectors(config)
    processor, system = ClipProcessor(config.model.policy), agent_prompt(config.agent)
    encode = partial(processor.tokenizer.encode, add_special_tokens=False)
    clips: dict[ClipReference, Clip] = {}  # of one step
    torch.manual_seed(config.seed * 1000 + rank)
    learner = Learner(config.sft, config.model, config.agent, vectors, clips.__getitem__)
    if settings["state"] is not None:
        learner.load_state(settings["state"])

    def save_state() -> None:
        with states.saving(learner.steps, settings["settings"]) if rank == 0 else nullcontext():
            torch.distributed.barrier()
            learner.save_state(states.part(learner.steps))
        if rank == 0:
            push(config.run_dir)
        torch.distributed.barrier()

    best = Best(config.run_dir / "checkpoints" / "sft-best", learner.save, notes=rank == 0)
    held, folder = settings["held"][rank], _folder(config) if settings["streams"] else None

    def examples_of(shown: Iterable[tuple[dict[str, Any], Clip | None]]) -> list[Example]:
        """Return the examples of rows and their clips, which take the place of those of the batch before."""
        clips.clear()
        examples = []
        for row, clip in shown:
            if clip is None:
                examples.append(
                    spoken_example(list(row["history"]), row["reply"], encode, whole=bool(row.get("whole")))
                )
                continue
            clips[clip.reference] = clip
            examples.append(record_example(row, clip, processor, system, config.sft.negatives))
        return examples

    def evaluate() -> dict[str, float]:
        parts = []
        for start in range(0, len(held), per_rank):
            batch = held[start : start + per_rank]
            shown = ((row, folder.read(row["video_id"]) if folder else None) for row in batch)
            parts.append(learner.evaluate(examples_of(shown)))
        return of_all_batches(parts)

    if folder is None:  # without clips there is nothing to stream
        ordered = rows_in_order(ray.get(settings["rows"]), config.seed)
        rows = rows_of_rank(ordered, rank, config.sft.learner.ranks, per_rank, learner.steps)
    else:
        rows = iter(settings["streams"][rank].iter_rows()) if learner.steps < steps else iter(())
    after = dict.fromkeys(("sft", "sft_val"), learner.steps)
    with RunLog(config.run_dir, wandb=config.tracking.wandb, after=after) if rank == 0 else nullcontext() as log:
        started, saved = time.monotonic(), learner.steps
        for step in range(learner.steps + 1, steps + 1):
            began = time.monotonic()
            of_time = learner.agreed((began - started) / config.sft.limit_s) if config.sft.limit_s else 0.0
            if of_time > 1 and learner.steps:
                break
            examples = examples_of((row, clip_of(row) if folder else None) for row in islice(rows, per_rank))
            read = time.monotonic()
            rate = learning_rate(config.sft.learner, step, max((step - 1) / steps, of_time))
            metrics = learner.step(examples, rate) | {"learning_rate": rate}
            ended = time.monotonic()
            metrics |= {"seconds/data": read - began, "seconds/learn": ended - read}
            metrics[LAST_SCALAR] = metrics["tokens"] / (ended - began)
            if log:  # before the state: a run that goes on from it must find all steps before it in the log
                if learner.steps == 1:
                    states.begin(settings["settings"])
                log.log("sft", step, metrics)
            if step % (config.sft.validate_every or steps + 1) == 0:
                values = evaluate()
                if log:
                    log.log("sft_val", step, values)
                if config.sft.keep_best:
                    best.offer(step, -values["loss"])
            if config.sft.save_every and step % config.sft.save_every == 0:
                save_state()
                saved = step
        if learner.steps > saved:
            save_state()
    learner.save(config.run_dir / "checkpoints" / "sft")


def _clips(config: Config, rows: list[dict[str, Any]]) -> ClipFolder | None:
    """Return the clips that records show, None where they show none; they are all of one kind."""
    return _folder(config) if "video_id" in rows[0] else None


def _folder(config: Config) -> ClipFolder:
    return ClipFolder(DatasetFolder(config.data.root).clips(TRAIN), config.data.timestamps)


def _with_heads(config: Config) -> Config:
    """Return the configuration with a policy folder that has heads: a stock checkpoint gets new ones, once a run."""
    # Here, because it is slow to import and all of Ray Train's processes import this module.
    from vsr1.model.new_policy import lacks_heads, write_new_policy

    if not lacks_heads(config.model.policy, allow_bin=config.model.allow_bin):
        return config
    start = config.run_dir / "checkpoints" / "start"
    if not start.is_dir():
        write_new_policy(config.model.policy, config.model.embedder, start, seed=config.seed)
        sent_folder(start)
    return config.model_copy(update={"model": config.model.model_copy(update={"policy": start})})


def _states(config: Config) -> StateFolder:
    return StateFolder(config.run_dir / "state" / "sft", config.sft.save_total_limit)


def _settings(config: Config, rows: list[dict[str, Any]], steps: int) -> dict[str, Any]:
    """Return all that decides what a step does, as a JSON value; a state is continued under the same only."""
    sft = config.sft.model_dump(mode="json", exclude=dict.fromkeys(UNDECIDED, True) | {"learner": SPEED})
    return {
        "seed": config.seed,
        "model": config.model.model_dump(mode="json"),
        "data": {"timestamps": config.data.timestamps},
        "agent": {"latents": config.agent.depth, "system_prompt": agent_prompt(config.agent)},
        "sft": sft,
        "steps (sft.max_steps, sft.epochs)": steps,
        "training records (sha256)": lines_sha256(rows),
    }


def _named(error: Any, states: StateFolder) -> SftError:
    """Return the failure by rank; ranks that only lost their connection come after those that failed by themselves."""
    failures = sorted(error.worker_failures.items(), key=lambda item: "gloo" in str(item[1]) or "NCCL" in str(item[1]))
    reasons = "; ".join(
        f"learner rank {rank}: {reason(cause) or last_line(f'{type(cause).__name__}: {cause}')}"
        for rank, cause in failures
    )
    next_run = "goes on from the last saved state" if states.newest() else "begins anew: there is no state yet"
    return SftError(f"Stage 1 stopped. {reasons}. The same command {next_run}")
