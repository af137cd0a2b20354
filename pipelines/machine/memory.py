"""The memory of a GPU that each role of a stage takes, by `vsr1.footprint` from the configuration: for the plan."""

from __future__ import annotations

from typing import Literal

from vsr1.config import Config
from vsr1.footprint import (
    ModelShape,
    Parts,
    Pass,
    engine_memory,
    kv_token_bytes,
    learner_memory,
    retrieval_memory,
    video_tokens,
)
from vsr1.storage import fetched

PROMPT_WORDS = 200  # tokens of a prompt beside its clip
LEARNER, ENGINE, RETRIEVAL = "learner rank", "rollout worker", "retrieval service"  # as the plan calls the roles


def gpu_memory(config: Config, stage: Literal["sft", "grpo", "eval"], gpu_gib: float) -> dict[str, Parts]:
    """Return GiB by role and by what they are for; nothing without GPUs, or where no checkpoints tell the sizes.

    Args:
        gpu_gib: memory of a GPU, of which engines take a share.
    """
    model = config.model
    if model.device == "cpu" or not all(
        fetched(path / "config.json").is_file() for path in (model.policy, model.embedder)
    ):
        return {}
    policy, embedder = ModelShape.read(model.policy), ModelShape.read(model.embedder)
    size, engine = (2 if model.dtype == "bfloat16" else 4), config.rollout.engine
    memory: dict[str, Parts] = {}
    if stage != "eval":
        learner = config.grpo.learner if stage == "grpo" else config.sft.learner
        largest = largest_pass(config, stage, policy.layers)
        shared = {"ranks": learner.ranks, "zero_stage": learner.zero_stage, "size": size}
        memory[LEARNER] = learner_memory(policy, embedder, largest, **shared)
        if stage == "grpo" and config.grpo.objective.kl != "none":
            memory[LEARNER]["reference"] = memory[LEARNER]["weights"]
    if stage != "sft":
        share, cache = engine.gpu_memory_utilization, engine.kv_cache_gib
        memory[ENGINE] = engine_memory(policy, share, gpu_gib, kv_gib=cache, size=size)
        memory[RETRIEVAL] = retrieval_memory(embedder, size)
    return memory


def largest_pass(config: Config, stage: Literal["sft", "grpo"], layers: int) -> Pass:
    """Return the largest pass that a rank may make: each clip has the most frames, each reply the most words."""
    clip = video_tokens(config.data.max_frames, config.data.max_pixels)
    prompt, words = clip + PROMPT_WORDS, config.agent.max_new_tokens
    reply = words + config.agent.depth
    settings = config.grpo if stage == "grpo" else config.sft
    learner = settings.learner
    if stage == "grpo":
        group, prompts = config.grpo.group_size, config.grpo.prompts_per_step * config.agent.max_turns
        rolls = config.agent.depth > 0 and not config.grpo.latents.sigma
    else:
        group, prompts, rolls = 1, config.sft.batch_size, config.agent.depth > 0
    of_prompt, share = prompt + group * reply, max(1, prompts // learner.ranks)
    tokens = max(min(learner.micro_tokens, share * of_prompt), prompt + reply)
    recompute = learner.gradient_checkpointing
    return Pass(
        tokens=tokens,
        words=round(tokens / of_prompt * group * words),
        clips=round(tokens / of_prompt * clip) if stage == "sft" else 0,
        recomputed=layers if recompute is True else min(layers, int(recompute)),
        rolls=rolls,
        is_alone=share * of_prompt <= tokens,
    )


def cached_requests(config: Config, memory: Parts) -> int:
    """Return how many requests of the greatest length the key-value cache of an engine holds."""
    size = 2 if config.model.dtype == "bfloat16" else 4
    tokens = memory["key-value cache"] * 2**30 / kv_token_bytes(ModelShape.read(config.model.policy), size)
    return max(0, int(tokens / config.rollout.engine.max_model_len))
