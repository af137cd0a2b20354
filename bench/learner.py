"""The learner alone, on random weights: seconds of a step, its parts, memory, and the share of the device.

Every step is of new clips and new replies, so that nothing is encoded before it is timed. With `ranks` it is the
product's learner under DeepSpeed, a process a rank. Without (0) it is the same loss with torch's AdamW on float32
copies of the weights in this process, which needs neither DeepSpeed nor Ray.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bench.kernels import kernels
from bench.measure import Rounds, device, dtype_name
from bench.toy.models import config_2b, toy_config, toy_processor
from bench.toy.tokenizer import embedder_tokenizer, policy_tokenizer, train_tokenizer, vocabulary_texts
from vsr1.engine.latent_table import latent_noise
from vsr1.model.checkpoint import refine_token_id, save_policy
from vsr1.model.embedder import Embedder
from vsr1.model.policy import VideoSearchPolicy
from vsr1.model.processor import ClipProcessor
from vsr1.rl.batch import (
    Example,
    LatentActions,
    RetrievalTarget,
    Sampled,
    batch_totals,
    micro_batches,
    split_over_ranks,
)
from vsr1.rl.example_loss import ExampleLoss
from vsr1.rl.flops import ModelFlops
from vsr1.rl.meter import peak_flops, work_numbers
from vsr1.rl.objective import fetched, merged
from vsr1.rl.refined import VideoVectors
from vsr1.search.prompts import SYSTEM_PROMPT, turn_prompt
from vsr1.settings.parts import AgentConfig, ModelConfig
from vsr1.settings.training import GrpoConfig, LatentActionConfig, LearnerConfig, SftConfig
from vsr1.video.clips import Clip, ClipReference

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Qwen3VLConfig

    from vsr1.rl.learner import Learner

SIGMA, VIDEOS, NEGATIVES, RATE = 0.05, 64, 24, 1e-6
Step = Callable[[list[Example]], dict[str, float]]


@dataclass(frozen=True)
class LearnerWork:
    """What is measured: `prompts` a step, `group` replies of `words` tokens to each, about clips of `frames`."""

    shape: str = "toy"
    stage: int = 2
    frames: int = 16
    side: int = 64
    prompts: int = 4
    group: int = 8
    words: int = 96
    shared: bool = True
    latents: bool = True
    latent_passes: int = 2
    micro_tokens: int = 16_384
    recompute: int = 0
    compiled: bool = False
    ranks: int = 0
    zero_stage: int = 1
    rounds: int = 5
    profile: bool = False


def bench_learner(work: LearnerWork) -> dict[str, Any]:
    """Take steps and return medians over the rounds, the first step left out."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_models(work.shape, folder, weights=work.ranks > 0, pixels=work.frames * work.side**2)
        if not work.ranks:
            batches = Batches(work, folder)
            return asdict(work) | measured(work, batches, plain_step(work, folder, batches))
        torch.multiprocessing.spawn(_rank, (work, folder, free_port()), nprocs=work.ranks)
        return asdict(work) | torch.load(folder / "figures.pt")


def free_port() -> int:
    """Return a port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def measured(work: LearnerWork, batches: Batches, step: Step, rank: int = 0) -> dict[str, Any]:
    """Return the figures of steps; all ranks take them."""
    taken, numbers = Rounds(), []
    for number in range(work.rounds + 1):
        examples = batches.parts(batches.step(number))[rank]
        with taken.time("step"):
            numbers.append(step(examples))
    seconds = taken.seconds["step"][1:]
    names = sorted({name for one in numbers[1:] for name in one if name.startswith(("seconds/", "learner/", "mfu"))})
    figures: dict[str, Any] = {name: median(one[name] for one in numbers[1:]) for name in names}
    figures |= {"first_step_s": taken.seconds["step"][0], "step_s": median(seconds), "loss": numbers[-1]["loss"]}
    if work.profile:
        examples = batches.parts(batches.step(work.rounds + 1))[rank]
        figures["kernels"] = kernels(lambda: step(examples))
    return figures


class Batches:
    """Makes the batches of steps: random films and words, and latents that the engine might have sampled."""

    def __init__(self, work: LearnerWork, folder: Path) -> None:
        self._work, self._processor = work, ClipProcessor(folder / "policy")
        self._refine = refine_token_id(self._processor.tokenizer)
        self.clip = lru_cache(4 * work.prompts)(self._clip)  # made before a step is timed, as a clip store would
        config = config_of(work.shape, self._processor.tokenizer)
        self._width, self._flops = config.refine_dim, ModelFlops.of(config)

    def _clip(self, reference: ClipReference) -> Clip:
        """Return the clip of that number, the same in every process."""
        work, number = self._work, int(reference.video_id)
        pixels = np.random.default_rng(number).integers(0, 255, (work.frames, work.side, work.side, 3), np.uint8)
        return Clip(reference.video_id, pixels, np.arange(work.frames) * 1.0, str(number))

    def parts(self, examples: list[Example]) -> list[list[Example]]:
        """Return what each rank gets of a step's examples."""
        return split_over_ranks(examples, max(self._work.ranks, 1), self._flops)

    def step(self, number: int) -> list[Example]:
        """Return the examples of a step, the replies of a prompt spread over the whole."""
        work, rng = self._work, np.random.default_rng(number)
        examples = []
        for group in range(work.prompts):
            reference = ClipReference(str(number * work.prompts + group), str(number * work.prompts + group))
            prompt = self._processor.prompt_ids(turn_prompt("a red circle", SYSTEM_PROMPT), self.clip(reference))
            for reply in range(work.group):
                own = prompt if work.shared else [*prompt[:-1], 20 + reply]
                examples.append(self._example(own, reference, rng))
        return examples

    def _example(self, prompt: list[int], reference: ClipReference, rng: np.random.Generator) -> Example:
        work, depth = self._work, AgentConfig().latents
        reply = [*rng.integers(20, 400, work.words - 1).tolist(), self._refine]
        sampled = Sampled([-6.0] * work.words, float(rng.normal()))
        example = Example(prompt, reply, (reference,), sampled=sampled if work.stage == 2 else None)
        if work.latents:
            values = rng.normal(size=(depth, self._width)).astype(np.float32)
            seed = int(rng.integers(1 << 30))
            noise = torch.stack([latent_noise(seed, step, self._width) for step in range(depth)]).numpy()
            example.target = RetrievalTarget("a red circle", "0", [str(i + 1) for i in range(NEGATIVES)])
            if work.stage == 2:
                example.target.latents = values + np.float32(SIGMA) * noise
                sampled.latents = LatentActions(example.target.latents, seed, float(rng.normal()))
        return example


def write_models(shape: str, folder: Path, *, weights: bool, pixels: int = 64 * 448 * 448) -> None:
    """Write tokenizers and processors, and random weights if they are wanted.

    Args:
        pixels: of the largest clip; larger ones are made smaller. An engine tries one when it starts, and vLLM's cache
            refuses it beyond 4 GiB.
    """
    base = train_tokenizer(vocabulary_texts(0, 200))
    for name, tokenizer in (("policy", policy_tokenizer(base)), ("embedder", embedder_tokenizer(base))):
        processor = toy_processor(tokenizer)
        processor.video_processor.size = {"shortest_edge": 2 * 32 * 32, "longest_edge": pixels}
        processor.save_pretrained(folder / name)
    if weights:
        policy, embedder = build_models(shape, folder)
        save_policy(folder / "policy", policy)
        embedder.save_pretrained(folder / "embedder")
        del policy, embedder
        if device() == "cuda":
            torch.cuda.empty_cache()  # for the processes that load them


def build_models(shape: str, folder: Path) -> tuple[VideoSearchPolicy, torch.nn.Module]:
    """Return policy and embedder of random weights on this machine's device, in its dtype."""
    from transformers import Qwen3VLModel

    models: list[Any] = []
    for name, kind in (("policy", VideoSearchPolicy), ("embedder", Qwen3VLModel)):
        tokenizer = ClipProcessor(folder / name).tokenizer
        torch.manual_seed(len(models))
        torch.set_default_dtype(getattr(torch, dtype_name()))
        try:
            with torch.device(device()):
                models.append(kind(config_of(shape, tokenizer)))
        finally:
            torch.set_default_dtype(torch.float32)
    return models[0], models[1]


def config_of(shape: str, tokenizer: PreTrainedTokenizerBase) -> Qwen3VLConfig:
    """Return the sizes of a shape."""
    return config_2b(tokenizer) if shape == "2b" else toy_config(tokenizer)


def stage_of(work: LearnerWork) -> SftConfig | GrpoConfig:
    """Return the settings of the stage that is measured."""
    learner = LearnerConfig(
        ranks=max(work.ranks, 1),
        zero_stage=work.zero_stage,
        micro_tokens=work.micro_tokens,
        gradient_checkpointing=work.recompute,
        compile=work.compiled,
    )
    stage: SftConfig | GrpoConfig = SftConfig(learner=learner)
    if work.stage == 2:
        stage = GrpoConfig(learner=learner, latents=LatentActionConfig(sigma=SIGMA if work.latents else 0.0))
    stage.retrieval_loss.latent_passes = work.latent_passes
    return stage


def plain_step(
    work: LearnerWork, folder: Path, batches: Batches, models: tuple[VideoSearchPolicy, torch.nn.Module] | None = None
) -> Step:
    """Return a step in this process: the product's loss and passes, torch's AdamW on float32 copies."""
    policy, embedder = models or build_models(work.shape, folder)
    policy.model.visual.requires_grad_(False)
    policy.model.visual.merger.requires_grad_(work.stage == 1)
    policy.model.visual.deepstack_merger_list.requires_grad_(work.stage == 1)
    encoder = Embedder(embedder, ClipProcessor(folder / "embedder"), "")
    sources = policy, None, encoder, _vectors(encoder.dim), ClipProcessor(folder / "policy"), batches.clip
    loss = ExampleLoss(stage_of(work), AgentConfig(), *sources)
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    masters = [parameter.detach().float().clone() for parameter in trained]
    optimizer = torch.optim.AdamW(masters, lr=RATE, weight_decay=0.0, fused=True)

    def step(examples: list[Example]) -> dict[str, float]:
        totals, meter = batch_totals(examples), loss.meter
        meter.begin()
        counted = []
        for groups in micro_batches(examples, work.micro_tokens):
            share, values = loss(groups, totals)
            with meter.part("backward"):
                share.backward()
            counted.append(values)
        with meter.part("optimise"):
            for master, parameter in zip(masters, trained, strict=True):
                master.grad = None if parameter.grad is None else parameter.grad.float()
                parameter.grad = None
            torch.nn.utils.clip_grad_norm_(masters, 1.0)
            optimizer.step()
            with torch.no_grad():
                torch._foreach_copy_(trained, masters)
            optimizer.zero_grad()
        return work_numbers([meter.end()], peak_flops(policy.device, policy.dtype)) | merged(fetched(counted))

    return step


def joined_learner(rank: int, work: LearnerWork, folder: Path, port: int, batches: Batches) -> Learner:
    """Return the product's learner as one rank of the process group at `port`, in a process of its own."""
    from vsr1.rl.learner import Learner

    os.environ["LOCAL_RANK"] = str(rank) if device() == "cuda" else "0"
    if device() == "cuda":
        torch.cuda.set_device(rank)
    else:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // work.ranks))
    address = f"tcp://127.0.0.1:{port}"
    backend = "nccl" if device() == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, init_method=address, rank=rank, world_size=work.ranks)
    model = ModelConfig(
        policy=folder / "policy", embedder=folder / "embedder", dtype=dtype_name(), device=device()
    )  # fmt: skip
    dim = config_of(work.shape, ClipProcessor(folder / "policy").tokenizer).refine_embedder_dim
    agent = AgentConfig() if work.latents else AgentConfig(refinement="none")
    return Learner(stage_of(work), model, agent, _vectors(dim), batches.clip)


def _rank(rank: int, work: LearnerWork, folder: Path, port: int) -> None:
    """Measure as one rank of the product's learner; rank 0 leaves the figures in the folder."""
    batches = Batches(work, folder)
    learner = joined_learner(rank, work, folder, port, batches)
    figures = measured(work, batches, lambda examples: learner.step(examples, RATE), rank)
    if rank == 0:
        torch.save(figures, folder / "figures.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def _vectors(dim: int) -> VideoVectors:
    matrix = torch.randn(VIDEOS, dim, generator=torch.Generator().manual_seed(0))
    rows = {str(i): i for i in range(VIDEOS)}
    return VideoVectors(torch.nn.functional.normalize(matrix, dim=-1), rows)
