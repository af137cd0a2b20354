"""Stage 1: replies and refined queries by example, DeepSpeed under Ray Train, records streamed by Ray Data."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
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
from vsr1.config import Config
from vsr1.formats.dataset import DatasetFolder
from vsr1.formats.digest import lines_sha256
from vsr1.rl.batch import annealed
from vsr1.runs.scalars import RunLog, read_scalars
from vsr1.runs.state import StateFolder
from vsr1.search.prompts import agent_prompt, turn_prompt, with_rewrite
from vsr1.video.clips import ClipFolder


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
    path = folder.sft_records()
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; build the dataset first with `vsr1 data build`")
    records = json.loads(path.read_text(encoding="utf-8"))
    negatives = json.loads(folder.hard_negatives().read_text(encoding="utf-8"))
    rewrites = _rewrites(folder) if config.agent.refinement == "text" else {}
    rows = [_row(record, negatives, rewrites) for record in records]
    ranks = config.sft.learner.ranks
    per_rank = max(1, config.sft.batch_size // ranks)
    steps = len(rows) // (per_rank * ranks) * config.sft.epochs
    steps = min(steps, config.sft.max_steps or steps)
    if steps == 0:
        raise ValueError(f"{len(rows)} records do not fill one batch of {config.sft.batch_size}; lower sft.batch_size")
    config = _with_heads(config)
    settings = _settings(config, rows, steps)
    states = StateFolder(config.run_dir / "state" / "sft")
    done, state = states.newest() or (0, None)
    if state is not None:
        states.check(state, settings)
    ordered = list(islice(_epochs(rows, config.seed), steps * per_rank * ranks))
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
                with_clips(_rows_of(ordered, rank, ranks, per_rank, done), clips, per_rank) for rank in range(ranks)
            ],
        },
        torch_config=TorchConfig(backend="gloo" if config.model.device == "cpu" else "nccl"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=ranks, use_gpu=need.gpus > 0, resources_per_worker={"CPU": need.cpus} | _gpu(need.gpus)
        ),
        run_config=ray.train.RunConfig(
            name="sft",
            storage_path=str(config.run_dir / "ray_train"),
        ),
    )
    with ThreadPoolExecutor(1) as pool:
        fitting = pool.submit(trainer.fit)
        progress.begin("sft", steps, {"learner": ranks})
        progress.now("training", learner=Load(ranks))
        while not wait([fitting], timeout=1.0).done:
            done = _tell_steps(config.run_dir, done, progress)
        _tell_steps(config.run_dir, done, progress)
        try:
            fitting.result()
        except ray.train.WorkerGroupError as error:
            raise _named(error) from error
    return config.run_dir / "checkpoints" / "sft"


def train_rank(settings: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    import torch

    from vsr1.model.processor import ClipProcessor
    from vsr1.rl.batch import BatchTotals, Example, batch_totals, micro_batches
    from vsr1.rl.example_loss import load_vectors
    from vsr1.rl.learner import Learner

    config = Config.model_validate(settings["config"])
    context = ray.train.get_context()
    rank = context.get_world_rank()
    log_to(config.run_dir / "logs" / f"learner-{rank}.log")
    steps, per_rank = settings["steps"], settings["per_rank"]
    folder = DatasetFolder(config.data.root)
    vectors = load_vectors(folder, "train")
    processor = ClipProcessor(config.model.policy)
    system = agent_prompt(config.agent)
    torch.manual_seed(config.seed * 1000 + rank)
    learner = Learner(config.sft, config.model, config.agent, vectors)
    if settings["state"] is not None:
        learner.load_state(settings["state"])

    def example(row: dict[str, Any]) -> Example:
        clip = clip_of(row)
        return Example(
            query=row["query"],
            clip=clip,
            prompt_ids=processor.prompt_ids(turn_prompt(row["query"], system), clip),
            response_ids=processor.tokenizer.encode(row["reply"], add_special_tokens=False),
            refined=row["video_id"] != row["positive"],  # an accepting reply ends the search
            positive=row["positive"],
            negatives=list(row["negatives"]),
        )

    def save_state() -> None:
        states = StateFolder(config.run_dir / "state" / "sft")
        if rank == 0:
            states.begin(learner.steps)
        torch.distributed.barrier()
        learner.save_state(states.part(learner.steps))
        if rank == 0:
            states.publish(learner.steps, settings["settings"])
        torch.distributed.barrier()

    rows = iter(settings["streams"][rank].iter_rows()) if learner.steps < steps else iter(())
    with RunLog(config.run_dir) if rank == 0 else nullcontext() as log:
        for step in range(learner.steps + 1, steps + 1):
            began = time.monotonic()
            examples = [example(row) for row in islice(rows, per_rank)]
            read = time.monotonic()
            own = batch_totals(examples)
            counts = torch.tensor([own.tokens, own.replies, own.refined], device=learner.policy.device)
            torch.distributed.all_reduce(counts)
            tokens, replies, refined = counts.tolist()
            rate = config.sft.learner.learning_rate * annealed((step - 1) / steps)
            passes = torch.tensor(len(micro_batches(examples, config.sft.learner.micro_tokens)), device=counts.device)
            torch.distributed.all_reduce(passes, torch.distributed.ReduceOp.MAX)
            sums = learner.step(examples, int(passes), BatchTotals(tokens, replies, refined, 0), rate)
            names = sorted(sums)
            values = torch.tensor([sums[name] for name in names], device=learner.policy.device)
            torch.distributed.all_reduce(values)
            metrics = dict(zip(names, values.tolist(), strict=True)) | {"learning_rate": rate}
            metrics["grad_norm"] /= context.get_world_size()  # the same on every rank
            ended = time.monotonic()
            metrics |= {"seconds/data": read - began, "seconds/learn": ended - read}
            metrics["tokens_per_second"] = tokens / (ended - began)
            if log:  # before the state: a run that goes on from it must find all steps before it in the log
                log.log("sft", step, metrics)
            if step == steps or (config.sft.save_every and step % config.sft.save_every == 0):
                save_state()
    learner.save(config.run_dir / "checkpoints" / "sft")


def _with_heads(config: Config) -> Config:
    """The configuration with a policy folder that has heads: a stock checkpoint gets new ones, once a run."""
    # Here, because it is slow to import and all of Ray Train's processes import this module.
    from vsr1.model.new_policy import lacks_heads, write_new_policy

    if not lacks_heads(config.model.policy, allow_bin=config.model.allow_bin):
        return config
    start = config.run_dir / "checkpoints" / "start"
    if not start.is_dir():
        write_new_policy(config.model.policy, config.model.embedder, start, seed=config.seed)
    return config.model_copy(update={"model": config.model.model_copy(update={"policy": start})})


def _epochs(rows: list[dict[str, Any]], seed: int) -> Iterator[dict[str, Any]]:
    """Rows without end, each epoch in an order of its own: a function of the seed alone."""
    order = random.Random(seed)
    while True:
        yield from order.sample(rows, len(rows))


def _rows_of(ordered: list[dict[str, Any]], rank: int, ranks: int, per_rank: int, done: int) -> list[dict[str, Any]]:
    """What a rank trains on after `done` steps: a step takes `per_rank` rows for each rank, one rank after another."""
    batches = range(done * ranks + rank, len(ordered) // per_rank, ranks)
    return [row for batch in batches for row in ordered[batch * per_rank : (batch + 1) * per_rank]]


def _settings(config: Config, rows: list[dict[str, Any]], steps: int) -> dict[str, Any]:
    """All that decides what a step does, as a JSON value; a state is continued under the same only."""
    sft = config.sft.model_dump(mode="json", exclude={"save_every", "epochs", "max_steps"})
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
    """The failure of a rank; ranks that only lost their connection to it are behind those that failed by themselves."""
    failures = sorted(error.worker_failures.items(), key=lambda item: "gloo" in str(item[1]) or "NCCL" in str(item[1]))
    told = "; ".join(
        f"learner rank {rank}: {(str(cause).strip() or repr(cause)).splitlines()[-1]}" for rank, cause in failures
    )
    return SftError(f"Stage 1 stopped. {told}. The same command goes on from the last saved state")


def _tell_steps(run_dir: Path, told: int, progress: Progress) -> int:
    """Report the steps that were logged since step `told`; the last one of them."""
    path = run_dir / "scalars.jsonl"
    rows = [row for row in read_scalars(path) if row["stage"] == "sft"] if path.is_file() else []
    steps: dict[int, dict[str, float]] = {}
    ended = {row["step"]: row["time"] for row in rows}
    for row in rows:
        steps.setdefault(row["step"], {})[row["name"]] = row["value"]
    for step in sorted(step for step in steps if step > told):
        seconds = {"step": ended[step] - ended[step - 1]} if step - 1 in ended else {}
        progress.step(step, {"loss": steps[step]["loss"]}, seconds)
    return max(steps, default=told)


def _rewrites(folder: DatasetFolder) -> dict[str, str]:
    path = folder.rewrites()
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: agent.refinement=text learns from one text a query id; for the toy corpus "
            "`python -m bench toy rewrites` writes them"
        )
    found: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _row(record: dict[str, Any], negatives: dict[str, list[str]], rewrites: dict[str, str]) -> dict[str, Any]:
    meta, messages = record["meta"], record["messages"]
    positive, reply = meta["query_pos_video_id"], messages[-1]["content"]
    shown = [meta["video_id"]] if meta["video_id"] != positive else []
    if rewrites and shown:
        reply = with_rewrite(reply, rewrites[record["qid"]])
    wrong = dict.fromkeys([*shown, *negatives.get(record["qid"], [])])
    return {
        "query": record["query"],
        "video_id": meta["video_id"],
        "reply": reply,
        "positive": positive,
        "negatives": list(wrong),
    }


def _gpu(count: float) -> dict[str, float]:
    return {"GPU": count} if count else {}
