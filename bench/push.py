"""Replies, a step of the learner on them and the push of its weights, on random weights: seconds of each.

The learner is the product's under DeepSpeed, a process a rank; the engine is in a process of its own, on the GPU of
rank 0 (`ipc`), on one of its own (`nccl`), or on the CPU (`file`). Every round is of new clips and of the engine's own
replies; after the last one the engine's weights are compared with the learner's.
"""

from __future__ import annotations

import asyncio
import os
import queue
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch.multiprocessing import get_context

from bench.learner import RATE, SIGMA, Batches, LearnerWork, free_port, joined_learner, write_models
from bench.lengths import EXACT_LENGTHS
from bench.measure import Rounds, device, dtype_name
from vsr1.engine.engine import PolicyEngine, Way
from vsr1.engine.transfer import WeightSender, share
from vsr1.episode.environment import Prompt
from vsr1.model.manifest import record
from vsr1.rl.batch import Example, LatentActions, RetrievalTarget, Sampled
from vsr1.rl.learner import Learner, on_rank_0
from vsr1.search.prompts import SYSTEM_PROMPT, turn_parts
from vsr1.settings.parts import AgentConfig, EngineConfig

HOST, ROOM = "127.0.0.1", 16  # tokens that the engine has room for beyond prompt and reply


@dataclass(frozen=True)
class PushWork:
    """How the weights go to an engine that has a share of its GPU's memory."""

    way: Way = "file"
    memory: float = 0.25


def bench_push(work: LearnerWork, push: PushWork) -> dict[str, Any]:
    """Return medians over rounds of replies, step and push, a round that warms up left out."""
    processes = get_context("spawn")
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        write_models(work.shape, folder, weights=True, pixels=work.frames * work.side**2)
        orders = [processes.Queue() for _ in range(work.ranks)]
        answers = processes.Queue()
        ranks = torch.multiprocessing.spawn(
            _serve, (work, folder, port, orders, answers), nprocs=work.ranks, join=False, daemon=True
        )  # daemons end with this process, also when it fails
        learner = _Ranks(orders, answers, ranks)
        if push.way == "nccl":
            gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
            # Of the engine's process, which starts now.
            os.environ["CUDA_VISIBLE_DEVICES"] = gpus[work.ranks] if len(gpus) > 1 else str(work.ranks)
        figures = asyncio.run(_rounds(work, push, folder, learner))
        learner.end()
    return asdict(work) | asdict(push) | figures


class _Ranks:
    """The learner's processes: an order goes to all of them, rank 0 answers."""

    def __init__(self, orders: list[Any], answers: Any, processes: Any) -> None:
        self._orders, self._answers, self._processes = orders, answers, processes

    def send(self, name: str, parts: list[Any] | None = None) -> None:
        for rank, order in enumerate(self._orders):
            order.put((name, parts and parts[rank]))

    async def answer(self) -> Any:
        """Wait for rank 0; raises what a rank died of."""
        while True:
            try:
                return await asyncio.to_thread(self._answers.get, True, 1.0)
            except queue.Empty:
                self._processes.join(timeout=0)

    async def call(self, name: str, parts: list[Any] | None = None) -> Any:
        self.send(name, parts)
        return await self.answer()

    def end(self) -> None:
        self.send("end")
        while not self._processes.join():
            pass


async def _rounds(work: LearnerWork, push: PushWork, folder: Path, learner: _Ranks) -> dict[str, Any]:
    batches, samples = Batches(work, folder), work.prompts * work.group
    longest = max(len(example.prompt_ids) for example in batches.step(0)) + work.words + AgentConfig().latents
    config = EngineConfig(
        max_num_seqs=samples,
        latent_slots=samples,
        max_model_len=longest + ROOM,
        gpu_memory_utilization=push.memory,
        logits_processor=EXACT_LENGTHS,
    )
    layout = await learner.call("layout")  # before the engine, which takes what others allocate beside it for its own
    engine = await PolicyEngine.start(folder / "policy", config, device=device(), dtype=dtype_name())
    try:
        if push.way == "nccl":
            port = free_port()
            learner.send("join", [port] * work.ranks)
            await engine.join_transfer(HOST, port, 1, 2)
            await learner.answer()
        taken, numbers = Rounds(), []
        for number in range(work.rounds + 1):
            await engine.reset_caches()
            with taken.time("step"):
                with taken.time("replies"):
                    examples = await _replies(engine, batches, work, number)
                with taken.time("learn"):
                    numbers.append(await learner.call("step", batches.parts(examples)))
                with taken.time("push"):
                    if push.way == "nccl":
                        learner.send("nccl")
                        await engine.push_weights("nccl", layout, number + 1)
                        await learner.answer()
                    else:
                        await engine.push_weights(push.way, await learner.call(push.way), number + 1)
        await engine.check_weights(await learner.call("manifest"))
    finally:
        engine.shutdown()
    medians = {f"{name}_s": float(np.median(seconds[1:])) for name, seconds in taken.seconds.items()}
    names = [name for name in numbers[-1] if name.startswith(("seconds/", "learner/", "mfu", "mismatch/mean"))]
    return medians | {name: float(np.median([one[name] for one in numbers[1:]])) for name in names}


async def _replies(engine: PolicyEngine, batches: Batches, work: LearnerWork, number: int) -> list[Example]:
    """Return the engine's replies to new clips as examples, what they earned by chance."""
    depth = AgentConfig().latents if work.latents else 0
    before, after = turn_parts("a red circle", SYSTEM_PROMPT)
    examples = batches.step(number)
    requests = [
        engine.generate(
            Prompt([before, batches.clip(example.clips[0]), after]),
            max_tokens=work.words + (0 if depth else -1),  # without latents the end token comes after the limit
            latents=depth,
            temperature=1.0,
            seed=number * len(examples) + place,
            sigma=SIGMA if depth else 0.0,
        )
        for place, example in enumerate(examples)
    ]
    for example, reply in zip(examples, await asyncio.gather(*requests), strict=True):
        earned = float(np.random.default_rng(reply.seed).normal())
        example.prompt_ids, example.response_ids = reply.prompt_token_ids, reply.token_ids
        example.sampled, example.target = Sampled(reply.logprobs, earned), None
        if reply.latents is not None:
            example.sampled.latents = LatentActions(reply.latents, reply.seed, earned)
            example.target = RetrievalTarget("a red circle", "0", ["1", "2"], latents=reply.latents)
    return examples


def _serve(rank: int, work: LearnerWork, folder: Path, port: int, orders: list[Any], answers: Any) -> None:
    """Do what is ordered as one rank of the learner."""
    batches = Batches(work, folder)
    learner, sender, kept = joined_learner(rank, work, folder, port, batches), None, None
    while (order := orders[rank].get())[0] != "end":
        name, part = order
        answer: Any = None
        if name == "step":
            answer = learner.step(part, RATE)
        elif name == "layout":
            answer = learner.layout()
        elif name == "join" and rank == 0:
            sender = WeightSender(HOST, part, 2)
        elif name == "manifest":
            answer = {key: record(tensor) for key, tensor in learner.full_weights()}
        elif name in ("ipc", "nccl", "file"):
            answer, kept = _sent(learner, name, sender, folder)
        if rank == 0:
            answers.put(answer)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    del kept  # what an engine on the same GPU reads


def _sent(learner: Learner, way: str, sender: WeightSender | None, folder: Path) -> tuple[Any, Any]:
    """Return what the engine needs to load the trained weights, and what must stay alive until it has."""
    if way == "file":
        state, path = on_rank_0(learner.full_weights()), folder / "pushed.part"
        if state is not None:
            save_file(state, path)
        return [str(path)], None
    if way == "ipc":
        shared = [(name, tensor.clone()) for name, tensor in learner.full_weights()]
        return share(shared), shared
    if sender is not None:
        sender.send(learner.full_weights())
    else:
        for _ in learner.full_weights():
            pass
    return None, None
