"""The engine on random weights: time of a refinement, parity with Hugging Face, and pushes of weights.

`bench_latents`: a refinement inside the engine, in a cached Hugging Face loop and by the reference's full
recomputation, on the same model and clips in the same run. `bench_parity`: log-probs and latents against a float32
oracle. `bench_weights`: seconds and GB/s of a push, checked.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors.torch import save_file

from bench.lengths import EXACT_LENGTHS
from bench.measure import Rounds, device, dtype_name, in_turn
from bench.reference import ForwardState, prefill, roll_latents, token_logprobs
from bench.toy.models import config_2b, new_policy, toy_processor
from bench.toy.tokenizer import policy_tokenizer, train_tokenizer, vocabulary_texts
from vsr1.engine.engine import PolicyEngine, Reply
from vsr1.engine.gate import PushError
from vsr1.episode.environment import Prompt
from vsr1.model.checkpoint import load_policy, refine_token_id, save_policy
from vsr1.model.forward import Row
from vsr1.model.manifest import record
from vsr1.model.policy import VideoSearchPolicy
from vsr1.model.processor import ClipProcessor
from vsr1.model.vision import encode_clips
from vsr1.search.prompts import SYSTEM_PROMPT, turn_parts, turn_prompt
from vsr1.settings.parts import EngineConfig
from vsr1.video.clips import Clip

DEPTH = 8
QUERY = "a red circle moving left"
T = TypeVar("T")
MIXED_SIZES = ((16, 64, 64), (24, 64, 64), (10, 96, 64), (32, 64, 128), (2, 64, 64))  # frames, pixels high and wide
LEFT_OUT = "model.language_model.layers.1.mlp.down_proj.weight"  # of a push that must be found out
NCCL_ADDRESS = ("127.0.0.1", 29611)


@dataclass(frozen=True)
class LatentWork:
    """What is measured: `samples` at once, `group` of them on each clip, `words` tokens before the refine token."""

    shape: str = "toy"
    samples: int = 32
    group: int = 8
    frames: int = 16
    side: int = 64  # pixels
    words: int = 32
    rounds: int = 5


def bench_latents(work: LatentWork) -> dict[str, Any]:
    """Return median milliseconds of one refinement each way, and what latents add to a batch in percent."""
    clips = _clips([(work.frames, work.side, work.side)] * -(-work.samples // work.group))
    with random_policy(work.shape) as folder:
        in_engine = _on_engine(folder, work.samples, lambda engine: latent_rounds(engine, clips, work))
        one_by_one = hugging_face_rounds(folder, clips[0], work)
    return vars(work) | latent_figures(in_engine, one_by_one, work.samples)


def latent_figures(in_engine: Rounds, one_by_one: Rounds, samples: int) -> dict[str, float]:
    """Return what rounds of batches `plain` and `refined` and of the single ways `cached` and `full` say.

    A refinement in the engine takes what latents add to a batch, divided by the samples in it.
    """
    added = in_engine.added("refined", "plain")
    return {
        "batch_s": in_engine.median("plain"),
        "batch_with_latents_s": in_engine.median("refined"),
        "latents_add_percent": 100 * added / in_engine.median("plain"),
        "engine_ms": 1e3 * added / samples,
        "cached_hf_ms": 1e3 * one_by_one.median("cached"),
        "full_recompute_ms": 1e3 * one_by_one.median("full"),
        "times_full_recompute": one_by_one.median("full") * samples / added,
        "times_cached_hf": one_by_one.median("cached") * samples / added,
    }


def bench_parity(shape: str, samples: int) -> dict[str, Any]:
    """Compare the engine with a float32 oracle, and Hugging Face in the engine's dtype with the same oracle.

    Half of the samples have no clip, the others clips of different sizes and lengths, all in one batch. Gaps of
    log-probs are absolute, gaps of latents relative to the latents' norm.
    """
    clips = _clips(MIXED_SIZES)
    with random_policy(shape) as folder:
        replies = _on_engine(folder, samples, lambda engine: _parity_replies(engine, clips, samples))
        exact = _oracle(folder, clips, replies, "float32")
        stock = exact if dtype_name() == "float32" else _oracle(folder, clips, replies, dtype_name())
    # Without the refine token, which the benchmark forces.
    engine = [(torch.tensor(reply.logprobs[:-1]), torch.tensor(reply.latents)) for reply in replies]
    figures: dict[str, Any] = {"shape": shape, "samples": samples, "dtype": dtype_name()}
    for first, kind in enumerate(("text", "video")):
        for name, answers in (("engine", engine), ("hugging_face", stock)):
            pairs = list(zip(answers[first::2], exact[first::2], strict=True))
            gaps = {
                "logprob": torch.cat([(answer[0] - oracle[0]).abs() for answer, oracle in pairs]),
                "latent": torch.stack([(answer[1] - oracle[1]).norm() / oracle[1].norm() for answer, oracle in pairs]),
            }
            for part, gap in gaps.items():
                figures[f"{kind}_{name}_{part}_mean"] = float(gap.mean())
                figures[f"{kind}_{name}_{part}_max"] = float(gap.max())
    return figures


def bench_weights(shape: str, way: str, rounds: int) -> dict[str, Any]:
    """Push a whole policy into an engine, check each push, and see that a tensor left out on purpose is named.

    Args:
        shape: of the policy, `toy` or `2b`.
        way: `file` (CPU), `ipc` (engine on the learner's GPU) or `nccl` (engine on the next GPU).
        rounds: pushes measured.
    """
    with random_policy(shape) as folder:
        policy = load_policy(folder, device=device(), dtype=dtype_name())
        if way == "nccl":
            torch.cuda.synchronize()
            os.environ["CUDA_VISIBLE_DEVICES"] = "1"  # of the engine's process, which starts now
        taken, caught = _on_engine(
            folder,
            1,
            lambda engine: push_rounds(engine, policy, way, rounds, folder / "pushed.part"),
            gpu_memory_utilization=0.3,
            enforce_eager=True,
        )
    gigabytes = sum(p.numel() * p.element_size() for p in policy.parameters()) / 1e9
    return {
        "shape": shape,
        "way": way,
        "rounds": rounds,
        "gigabytes": gigabytes,
        "push_s": taken.median("push"),
        "gb_per_s": gigabytes / taken.median("push"),
        "check_s": taken.median("check"),
        "left_out_is_caught": caught,
    }


@contextmanager
def random_policy(shape: str) -> Iterator[Path]:
    """Write a checkpoint folder of random weights for a block: `toy`, or `2b` with the sizes of Qwen3-VL-2B."""
    base = train_tokenizer(vocabulary_texts(0, 200))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if shape == "toy":
            policy, processor = new_policy(base, 0)
        else:
            tokenizer = policy_tokenizer(base)
            processor = toy_processor(tokenizer)
            torch.manual_seed(0)
            with torch.device(device()):
                torch.set_default_dtype(torch.bfloat16)
                policy = VideoSearchPolicy(config_2b(tokenizer))
                torch.set_default_dtype(torch.float32)
        save_policy(folder, policy, processor)
        del policy
        yield folder


def _on_engine(folder: Path, samples: int, use: Callable[[PolicyEngine], Awaitable[T]], **options: Any) -> T:
    """Start an engine with room for `samples` requests that refine at one time, await `use` of it, and end it."""
    room: dict[str, Any] = {
        "max_num_seqs": samples,
        "latent_slots": samples,
        "max_model_len": 4096,
        "gpu_memory_utilization": 0.5,
        "logits_processor": EXACT_LENGTHS,
    }

    async def run() -> T:
        engine = await PolicyEngine.start(folder, EngineConfig(**room | options), device=device(), dtype=dtype_name())
        try:
            return await use(engine)
        finally:
            engine.shutdown()

    return asyncio.run(run())


async def latent_rounds(engine: PolicyEngine, clips: list[Clip], work: LatentWork) -> Rounds:
    """Time whole batches `plain`, without latents, and `refined`, with them, caches empty before each, in turn.

    Raises:
        RuntimeError: a reply has latents that it should not have, or lacks them.
    """

    async def batch(latents: int, taken: Rounds) -> None:
        await engine.reset_caches()
        with taken.time("refined" if latents else "plain"):
            requests = [
                engine.generate(
                    _prompt(clips[i // work.group]),
                    max_tokens=work.words + (1 if latents else -1),  # one more comes: the refine token, or the end
                    latents=latents,
                    temperature=1.0,
                    seed=i,
                )
                for i in range(work.samples)
            ]
            replies = await asyncio.gather(*requests)
        if any((reply.latents is not None) != (latents > 0) for reply in replies):
            raise RuntimeError("a reply of the benchmark has latents it should not have, or lacks them")

    warm_up, taken = Rounds(), Rounds()
    for rounds in [warm_up] + [taken] * work.rounds:
        for latents in (0, DEPTH):
            await batch(latents, rounds)
    return taken


@torch.no_grad()
def hugging_face_rounds(folder: Path, clip: Clip, work: LatentWork) -> Rounds:
    """Time a refinement of one row: `cached`, a prefill and cached steps; `full`, `DEPTH` forwards as the reference."""
    policy = load_policy(folder, device=device(), dtype=dtype_name()).eval()
    processor = ClipProcessor(folder)
    seen = processor.process(clip, policy.device)
    reply = [int(token) for token in np.random.default_rng(0).integers(20, 200, work.words)]
    prompt = processor.expand(turn_prompt(QUERY, SYSTEM_PROMPT), seen.grid, seen.marks)
    row = Row(prompt, [*reply, refine_token_id(processor.tokenizer)], (0,), (seen.grid,))
    pixels = seen.pixels.to(policy.dtype)

    def state(keep_cache: bool) -> ForwardState:
        features = encode_clips(policy.model.visual, [pixels], [seen.grid])
        return prefill(policy.model, [row], features, keep_cache=keep_cache)

    def recompute() -> None:
        for _ in range(DEPTH):  # the reference runs the clip through the vision tower each time
            policy.latent(state(False).after_norm[:, -1])

    return in_turn({"cached": lambda: roll_latents(policy, state(True), DEPTH), "full": recompute}, work.rounds)


def _prompt(clip: Clip | None) -> Prompt:
    before, after = turn_parts(QUERY, SYSTEM_PROMPT)
    return Prompt([before, after] if clip is None else [before, clip, after])


async def _parity_replies(engine: PolicyEngine, clips: list[Clip], samples: int) -> list[Reply]:
    options: dict[str, Any] = {"max_tokens": 33, "latents": DEPTH, "temperature": 1.0}
    return await asyncio.gather(
        *[engine.generate(_prompt(clips[i % len(clips)] if i % 2 else None), seed=i, **options) for i in range(samples)]
    )


@torch.no_grad()
def _oracle(
    folder: Path, clips: list[Clip], replies: list[Reply], dtype: str
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return log-probs and latents of each reply's own tokens, one row at a time."""
    policy = load_policy(folder, device=device(), dtype=dtype).eval()
    processor = ClipProcessor(folder)
    processed = [processor.process(clip, policy.device) for clip in clips]
    barred = (refine_token_id(processor.tokenizer), int(processor.tokenizer.eos_token_id))  # see `ExactLengths`
    answers = []
    for i, reply in enumerate(replies):
        clip = processed[i % len(clips)]
        pixels = clip.pixels.to(policy.device, policy.dtype)
        features = encode_clips(policy.model.visual, [pixels], [clip.grid]) if i % 2 else []
        prompt, response = reply.prompt_token_ids, reply.token_ids
        row = Row(prompt, response, (0,), (clip.grid,)) if i % 2 else Row(prompt, response)
        state = prefill(policy.model, [row], features, keep_cache=True)
        logprobs, _ = token_logprobs(policy, state, [row])
        others = [replace(row, response=[token] * len(row.response)) for token in barred]
        logprobs = logprobs - torch.log(1 - sum(token_logprobs(policy, state, [other])[0].exp() for other in others))
        answers.append((logprobs[:-1].cpu(), roll_latents(policy, state, DEPTH)[0].cpu()))
    return answers


async def push_rounds(
    engine: PolicyEngine, policy: VideoSearchPolicy, way: str, rounds: int, file: Path
) -> tuple[Rounds, bool]:
    """Time each `push` and each `check`, and say whether a tensor left out on purpose was named.

    Args:
        engine: gets the weights of `policy`, which change with every round.
        policy: on the learner's device.
        way: see `bench_weights`.
        rounds: pushes after a first one that warms up.
        file: where the way `file` puts the weights; not `*.safetensors` if the folder is a checkpoint.
    """
    from vsr1.engine.transfer import WeightSender, share

    named = {name: parameter.detach() for name, parameter in policy.named_parameters()}
    sender: WeightSender | None = None
    if way == "nccl":
        sender, _ = await asyncio.gather(
            asyncio.to_thread(WeightSender, *NCCL_ADDRESS, 2), engine.join_transfer(*NCCL_ADDRESS, 1, 2)
        )

    async def push(version: int, weights: dict[str, torch.Tensor]) -> None:
        if sender is not None:
            layout = [(name, tuple(p.shape), str(p.dtype).removeprefix("torch.")) for name, p in weights.items()]
            await asyncio.gather(
                asyncio.to_thread(sender.send, weights.items()),
                engine.push_weights("nccl", layout, version),
            )
        elif way == "ipc":
            await engine.push_weights("ipc", share(weights.items()), version)
        else:
            save_file(weights, file)
            await engine.push_weights("file", [str(file)], version)

    async def check() -> None:
        await engine.check_weights({name: record(tensor) for name, tensor in named.items()})

    taken = Rounds()
    await push(0, named)
    for version in range(1, rounds + 1):
        for tensor in named.values():
            tensor.mul_(1.01)
        with taken.time("push"):
            await push(version, named)
        with taken.time("check"):
            await check()
    named[LEFT_OUT].mul_(1.01)
    await push(rounds + 1, {name: tensor for name, tensor in named.items() if name != LEFT_OUT})
    try:
        await check()
    except PushError as error:
        return taken, LEFT_OUT in str(error)
    return taken, False


def _clips(sizes: Iterable[tuple[int, int, int]]) -> list[Clip]:
    """Make a clip of random pixels for each size: frames, pixels high and wide."""
    rng = np.random.default_rng(0)
    return [
        Clip.make(f"v{i}", rng.integers(0, 255, (count, high, wide, 3), np.uint8), np.arange(count) * 1.0)
        for i, (count, high, wide) in enumerate(sizes)
    ]
