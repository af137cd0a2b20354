"""What every vLLM engine of ours is started with and shown, whether it holds the policy or a teacher."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch

from vsr1.model.processor import PROCESSOR_KWARGS, engine_metadata
from vsr1.settings.parts import EngineConfig
from vsr1.video.clips import Clip

BYTES = PROCESSOR_KWARGS | {"do_rescale": False, "do_normalize": False}  # for a model that normalises by itself


def set_environment(config: EngineConfig, device: str) -> None:
    """Set vLLM's own switches, before it is imported; its engine process inherits them."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"  # the V2 runner ignores logits processors
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"  # this process may hold a GPU, which a fork cannot share
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    if device == "cpu":
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(config.kv_cache_gib or 1)
        if config.enforce_eager is not False:
            os.environ["TORCHDYNAMO_DISABLE"] = "1"  # or vLLM compiles parts of its sampler, eager or not
        if torch.version.cuda is not None:
            os.environ["VLLM_TARGET_DEVICE"] = "cpu"


def engine_options(config: EngineConfig, device: str) -> dict[str, Any]:
    """Return the arguments of an engine for prompts with videos; call `set_environment` first.

    Args:
        device: `cpu` or `cuda`.
    """
    from vllm import EngineArgs
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    options: dict[str, Any] = {
        "seed": config.seed,
        "max_model_len": config.max_model_len,
        "max_num_seqs": config.max_num_seqs,
        "num_gpu_blocks_override": config.kv_blocks,
        "max_num_batched_tokens": config.max_num_batched_tokens,
        "enable_chunked_prefill": device != "cpu" if config.chunked_prefill is None else config.chunked_prefill,
        "enforce_eager": device == "cpu" if config.enforce_eager is None else config.enforce_eager,
        "limit_mm_per_prompt": {"video": config.videos_per_prompt, "image": 0},
        "mm_processor_kwargs": PROCESSOR_KWARGS,
        "disable_log_stats": not config.log_stats,
        "async_scheduling": device != "cpu",  # a GPU's next step is prepared while it computes one
    }
    if device != "cpu":
        options["gpu_memory_utilization"] = config.gpu_memory_utilization
        if config.kv_cache_gib is not None:
            # Then vLLM measures no memory, which engines that share a GPU would disturb.
            options["kv_cache_memory_bytes"] = config.kv_cache_gib * 2**30
    else:
        # As a class, for vLLM reads "uni" on CPU as "mp", whose second process serves to bind threads; ours are not.
        options["distributed_executor_backend"] = UniProcExecutor
    if "mm_device_do_normalize" in EngineArgs.__dataclass_fields__:
        # vLLM's device-side normalisation takes the image processor's mean and deviation for videos too.
        options["mm_device_do_normalize"] = False
    return options


def video_inputs(clips: Sequence[Clip]) -> dict[str, Any]:
    """Return what a request says of the clips of its prompt; frames carry their own timestamps."""
    videos = [(clip.frames, engine_metadata(clip.timestamps)) for clip in clips]
    hashes = [clip.content_hash for clip in clips]
    return {"multi_modal_data": {"video": videos}, "multi_modal_uuids": {"video": hashes}} if clips else {}
