"""Benchmarks on whatever hardware is there; each prints one line of JSON.

`latents`: the time of a refinement inside the engine, in a cached Hugging Face loop and by the reference's full
recomputation, on the same model and clips in the same run. `weights`: seconds and GB/s of a weight push, checked.
"""

from __future__ import annotations

import asyncio
import os
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from vsr1 import compat

compat.prepare()

from pipelines.machine.resources import cores  # noqa: E402
from vsr1.engine.engine import PolicyEngine, Reply, engine_version  # noqa: E402
from vsr1.model.checkpoint import load_policy, refine_token_id, save_policy  # noqa: E402
from vsr1.model.forward import Row, prefill, roll_latents, token_logprobs  # noqa: E402
from vsr1.model.manifest import record  # noqa: E402
from vsr1.model.policy import VideoSearchPolicy  # noqa: E402
from vsr1.model.processor import ClipProcessor  # noqa: E402
from vsr1.model.vision import encode_clips  # noqa: E402
from vsr1.search.prompts import SYSTEM_PROMPT, turn_prompt  # noqa: E402
from vsr1.settings.parts import EngineConfig  # noqa: E402
from vsr1.toy.models import config_2b, new_policy, toy_processor  # noqa: E402
from vsr1.toy.tokenizer import policy_tokenizer, train_tokenizer, vocabulary_texts  # noqa: E402
from vsr1.video.clips import Clip  # noqa: E402

DEPTH = 8


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
    rows: int = 8  # samples that the Hugging Face loops run, one by one


def bench_latents(work: LatentWork) -> dict[str, Any]:
    """Times of one refinement in milliseconds, medians of `rounds`, and what latents add to a batch in percent."""
    with random_policy(work.shape) as folder:
        clips = _clips(work)
        config = EngineConfig(
            max_num_seqs=work.samples, latent_slots=work.samples, max_model_len=4096, gpu_memory_utilization=0.5
        )
        plain, refined = asyncio.run(_engine_seconds(folder, config, clips, work))
        cached, full = _hugging_face_seconds(folder, clips, work)
    added = statistics.median(b - a for a, b in zip(plain, refined, strict=True))
    engine = added / work.samples
    return {
        "bench": "latents",
        **machine(),
        **vars(work),
        "batch_s": _round(statistics.median(plain)),
        "batch_with_latents_s": _round(statistics.median(refined)),
        "latents_add_percent": _round(100 * added / statistics.median(plain)),
        "engine_ms": _round(1e3 * engine),
        "cached_hf_ms": _round(1e3 * statistics.median(cached)),
        "full_recompute_ms": _round(1e3 * statistics.median(full)),
        "times_full_recompute": _round(statistics.median(full) / engine),
        "times_cached_hf": _round(statistics.median(cached) / engine),
    }


def bench_parity(shape: str, samples: int) -> dict[str, Any]:
    """Engine against a float32 oracle, and Hugging Face in the engine's dtype against the same oracle.

    Half of the samples have no clip, the others clips of different sizes and lengths, all in one batch. Gaps of
    log-probs are absolute, gaps of latents relative to the latents' norm.
    """
    with random_policy(shape) as folder:
        clips = _mixed_clips()
        config = EngineConfig(
            max_num_seqs=samples, latent_slots=samples, max_model_len=4096, gpu_memory_utilization=0.5
        )
        replies = asyncio.run(_parity_replies(folder, config, clips, samples))
        exact = _oracle(folder, clips, replies, "float32")
        same = exact if _dtype() == "float32" else _oracle(folder, clips, replies, _dtype())
    found: dict[str, Any] = {"bench": "parity", **machine(), "shape": shape, "samples": samples, "dtype": _dtype()}
    for kind in ("text", "video"):
        chosen = [i for i in range(samples) if (i % 2 == 1) == (kind == "video")]
        # Without the refine token, which the benchmark forces.
        engine = [(torch.tensor(replies[i].logprobs[:-1]), torch.tensor(replies[i].latents)) for i in chosen]
        for name, pairs in (("engine", engine), ("hugging_face", [same[i] for i in chosen])):
            logprob = torch.cat([(a - exact[i][0]).abs() for (a, _), i in zip(pairs, chosen, strict=True)])
            latent = [
                float((z - exact[i][1]).norm() / exact[i][1].norm()) for (_, z), i in zip(pairs, chosen, strict=True)
            ]
            found[f"{kind}_{name}_logprob_mean"] = _round(float(logprob.mean()))
            found[f"{kind}_{name}_logprob_max"] = _round(float(logprob.max()))
            found[f"{kind}_{name}_latent_mean"] = _round(statistics.mean(latent))
            found[f"{kind}_{name}_latent_max"] = _round(max(latent))
    return found


def bench_weights(shape: str, way: str, rounds: int) -> dict[str, Any]:
    """Push a whole policy into an engine and check each push.

    Args:
        way: `file` (CPU), `ipc` (engine on the learner's GPU) or `nccl` (engine on the next GPU).
    """
    with random_policy(shape) as folder:
        policy = load_policy(folder, device=_device(), dtype=_dtype())
        seconds, checks, caught = asyncio.run(_push_seconds(folder, policy, way, rounds))
        size = sum(p.numel() * p.element_size() for p in policy.parameters())
    return {
        "bench": "weights",
        **machine(),
        "shape": shape,
        "way": way,
        "rounds": rounds,
        "gigabytes": _round(size / 1e9),
        "push_s": _round(statistics.median(seconds)),
        "gb_per_s": _round(size / 1e9 / statistics.median(seconds)),
        "check_s": _round(statistics.median(checks)),
        "left_out_is_caught": caught,
    }


def machine() -> dict[str, Any]:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "gpu": gpu,
        "cores": cores(),
        "cpu": platform.machine(),
        "torch": torch.__version__,
        "vllm": engine_version(),
    }


@contextmanager
def random_policy(shape: str) -> Iterator[Path]:
    """A checkpoint folder of random weights: `toy`, or `2b` with the sizes of Qwen3-VL-2B."""
    base = train_tokenizer(vocabulary_texts(0, 200))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if shape == "toy":
            policy, processor = new_policy(base, 0)
        else:
            tokenizer = policy_tokenizer(base)
            processor = toy_processor(tokenizer)
            torch.manual_seed(0)
            with torch.device(_device()):
                torch.set_default_dtype(torch.bfloat16)
                policy = VideoSearchPolicy(config_2b(tokenizer))
                torch.set_default_dtype(torch.float32)
        save_policy(folder, policy, processor)
        del policy
        yield folder


async def _engine_seconds(
    folder: Path, config: EngineConfig, clips: list[Clip], work: LatentWork
) -> tuple[list[float], list[float]]:
    """Seconds of whole batches without and with latents, caches empty before each, in turn."""
    engine = await PolicyEngine.start(folder, config, device=_device(), dtype=_dtype())

    async def batch(latents: int) -> float:
        await engine.reset_caches()
        began = time.perf_counter()
        requests = [
            engine.generate(
                turn_prompt("a red circle moving left", SYSTEM_PROMPT),
                clips[i // work.group],
                max_tokens=work.words + 1,
                latents=latents,
                temperature=1.0,
                seed=i,
                words=work.words,
            )
            for i in range(work.samples)
        ]
        replies = await asyncio.gather(*requests)
        spent = time.perf_counter() - began
        if any((reply.latents is not None) != (latents > 0) for reply in replies):
            raise RuntimeError("a reply of the benchmark has latents it should not have, or lacks them")
        return spent

    try:
        for latents in (0, DEPTH):  # compiles
            await batch(latents)
        pairs = [(await batch(0), await batch(DEPTH)) for _ in range(work.rounds)]
    finally:
        engine.shutdown()
    return [a for a, _ in pairs], [b for _, b in pairs]


def _prompt(with_clip: bool) -> str:
    prompt = turn_prompt("a red circle moving left", SYSTEM_PROMPT)
    return prompt if with_clip else prompt.replace("<|video_pad|>", "")


async def _parity_replies(folder: Path, config: EngineConfig, clips: list[Clip], samples: int) -> list[Reply]:
    engine = await PolicyEngine.start(folder, config, device=_device(), dtype=_dtype())
    try:
        options: dict[str, Any] = {"max_tokens": 33, "latents": DEPTH, "temperature": 1.0, "words": 32}
        return await asyncio.gather(
            *[
                engine.generate(_prompt(i % 2 == 1), clips[i % len(clips)] if i % 2 else None, seed=i, **options)
                for i in range(samples)
            ]
        )
    finally:
        engine.shutdown()


@torch.no_grad()
def _oracle(
    folder: Path, clips: list[Clip], replies: list[Reply], dtype: str
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Log-probs and latents of each reply's own tokens, one row at a time."""
    policy = load_policy(folder, device=_device(), dtype=dtype).eval()
    processed = [ClipProcessor(folder).process(clip) for clip in clips]
    found = []
    for i, reply in enumerate(replies):
        clip = processed[i % len(clips)]
        pixels = clip.pixels.to(policy.device, policy.dtype)
        features = encode_clips(policy.model.visual, [pixels], [clip.grid]) if i % 2 else []
        prompt, response = reply.prompt_token_ids, reply.token_ids
        row = Row(prompt, response, (0,), (clip.grid,)) if i % 2 else Row(prompt, response)
        state = prefill(policy.model, [row], features, keep_cache=True)
        logprobs, _ = token_logprobs(policy, state, [row])
        found.append((logprobs[:-1].cpu(), roll_latents(policy, state, DEPTH)[0].cpu()))
    return found


@torch.no_grad()
def _hugging_face_seconds(folder: Path, clips: list[Clip], work: LatentWork) -> tuple[list[float], list[float]]:
    """Seconds a refinement, one row at a time: prefill and cached steps, and `DEPTH` forwards as the reference."""
    policy = load_policy(folder, device=_device(), dtype=_dtype()).eval()
    processor = ClipProcessor(folder)
    refine = refine_token_id(processor.tokenizer)
    cached, full = [], []
    for i in range(work.rows + 1):
        seen = processor.process(clips[i % len(clips)])
        prompt = processor.expand(turn_prompt("a red circle moving left", SYSTEM_PROMPT), seen.grid, seen.marks)
        reply = [int(t) for t in np.random.default_rng(i).integers(20, 200, work.words)]
        row = Row(prompt, [*reply, refine], (0,), (seen.grid,))
        pixels = seen.pixels.to(policy.device, policy.dtype)

        def state(keep_cache: bool, row: Row = row, pixels: Any = pixels, grid: Any = seen.grid) -> Any:
            features = encode_clips(policy.model.visual, [pixels], [grid])
            return prefill(policy.model, [row], features, keep_cache=keep_cache)

        def with_cache(state: Any = state) -> None:
            roll_latents(policy, state(True), DEPTH)

        def without_cache(state: Any = state) -> None:
            for _ in range(DEPTH):  # the reference runs the clip through the vision tower each time
                last = state(False)
                policy.latent(last.after_norm[:, -1])

        if i:  # the first one warms up
            cached.append(_seconds(with_cache))
            full.append(_seconds(without_cache))
        else:
            with_cache()
            without_cache()
    return cached, full


async def _push_seconds(
    folder: Path, policy: VideoSearchPolicy, way: str, rounds: int
) -> tuple[list[float], list[float], bool]:
    """Seconds of each push and of each check, and whether a tensor left out on purpose was named."""
    from vsr1.engine.engine import PushError
    from vsr1.engine.transfer import WeightSender, share

    if way == "nccl":
        torch.cuda.synchronize()
        os.environ["CUDA_VISIBLE_DEVICES"] = "1"  # of the engine's process, which starts now
    config = EngineConfig(gpu_memory_utilization=0.3, enforce_eager=True)
    engine = await PolicyEngine.start(folder, config, device=_device(), dtype=_dtype())
    named = list(policy.named_parameters())
    layout = [(name, tuple(p.shape), str(p.dtype).removeprefix("torch.")) for name, p in named]
    sender: list[WeightSender] = []
    if way == "nccl":
        host, port = "127.0.0.1", 29611
        opening = asyncio.to_thread(lambda: sender.append(WeightSender(host, port, 2)))
        await asyncio.gather(opening, engine.join_transfer(host, port, 1, 2))

    async def push(version: int, left_out: str | None = None) -> float:
        began = time.perf_counter()
        kept = [(name, p) for name, p in named if name != left_out]
        if way == "nccl":
            sending = threading.Thread(target=sender[0].send, args=(kept,))
            sending.start()
            await engine.push_weights("receive_nccl", ([item for item in layout if item[0] != left_out],), version)
            sending.join()
        elif way == "ipc":
            await engine.push_weights("receive_ipc", (share(kept),), version)
        else:
            path = folder / "pushed.part"
            save_file({name: p.detach() for name, p in kept}, path)
            await engine.push_weights("receive_file", (str(path),), version)
        return time.perf_counter() - began

    try:
        await push(0)
        seconds, checks = [], []
        for version in range(1, rounds + 1):
            with torch.no_grad():
                for _, parameter in named:
                    parameter.mul_(1.01)
            seconds.append(await push(version))
            began = time.perf_counter()
            await engine.check_weights({name: record(p.detach()) for name, p in named})
            checks.append(time.perf_counter() - began)
        left_out = "model.language_model.layers.1.mlp.down_proj.weight"
        with torch.no_grad():
            dict(named)[left_out].mul_(1.01)
        await push(rounds + 1, left_out)
        try:
            await engine.check_weights({name: record(p.detach()) for name, p in named})
            caught = False
        except PushError as error:
            caught = left_out in str(error)
    finally:
        engine.shutdown()
    return seconds, checks, caught


def _mixed_clips() -> list[Clip]:
    rng = np.random.default_rng(0)
    sizes = [(16, 64, 64), (24, 64, 64), (10, 96, 64), (32, 64, 128), (2, 64, 64)]
    return [
        Clip.make(f"v{i}", rng.integers(0, 255, (count, high, wide, 3), np.uint8), np.arange(count) * 1.3)
        for i, (count, high, wide) in enumerate(sizes)
    ]


def _clips(work: LatentWork) -> list[Clip]:
    rng = np.random.default_rng(0)
    size = (work.frames, work.side, work.side, 3)
    count = -(-work.samples // work.group)
    return [
        Clip.make(f"v{i}", rng.integers(0, 255, size, np.uint8), np.arange(work.frames) * 1.0) for i in range(count)
    ]


def _seconds(call: Callable[[], None]) -> float:
    began = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _dtype() -> str:
    return "bfloat16" if torch.cuda.is_available() else "float32"


def _round(value: float) -> float:
    return float(f"{value:.4g}")
