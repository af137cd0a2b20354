"""The memory of a GPU that each role of a stage takes, by `vsr1.footprint` from the configuration: for the plan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vsr1.config import Config
from vsr1.environments.registry import environment_of
from vsr1.footprint import (
    ModelShape,
    Parts,
    Pass,
    engine_memory,
    kv_token_bytes,
    learner_memory,
    retrieval_memory,
    shard_memory,
    video_tokens,
)
from vsr1.formats.arrays import read_array
from vsr1.formats.dataset import DatasetFolder
from vsr1.settings.parts import EngineConfig
from vsr1.storage import fetched

PROMPT_WORDS = 200  # tokens of a prompt beside its clip
LEARNER, ENGINE = "learner rank", "rollout worker"  # as the plan calls the roles
RETRIEVAL, EMBEDDER = "retrieval service", "query embedder"
SHARD = "retrieval shard"
CAPTIONER, ANSWERER = "captioner", "answerer"
CHAT_ENGINE = "navigate.pools.captioner.engine"  # key of the engine of both


@dataclass(frozen=True)
class _Engine:
    """An engine of vLLM of each actor of some roles; `key` names its settings, `size` is bytes of a number."""

    roles: tuple[str, ...]
    key: str
    folder: Path
    settings: EngineConfig
    size: int


def _engines(config: Config) -> list[_Engine]:
    size = 2 if config.model.dtype == "bfloat16" else 4
    engines = [_Engine((ENGINE,), "rollout.engine", config.model.policy, config.rollout.engine, size)]
    captioner = config.navigate.pools.captioner
    if environment_of(config).has_films and captioner.kind == "vllm" and captioner.folder is not None:
        size = 4 if captioner.dtype == "float32" else 2  # vLLM's `auto` makes no number of a checkpoint larger
        engines.append(_Engine((CAPTIONER, ANSWERER), CHAT_ENGINE, captioner.folder, captioner.engine, size))
    return [engine for engine in engines if fetched(engine.folder / "config.json").is_file()]


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
    size = 2 if model.dtype == "bfloat16" else 4
    memory: dict[str, Parts] = {}
    if stage != "eval":
        learner = config.grpo.learner if stage == "grpo" else config.sft.learner
        largest = largest_pass(config, stage, policy.layers)
        shared = {"ranks": learner.ranks, "zero_stage": learner.zero_stage, "size": size}
        memory[LEARNER] = learner_memory(policy, embedder, largest, **shared)
        if stage == "grpo" and config.grpo.objective.kl != "none":
            memory[LEARNER]["reference"] = memory[LEARNER]["weights"]
    if stage != "sft":
        for engine in _engines(config):
            shape, share = ModelShape.read(engine.folder), engine.settings.gpu_memory_utilization
            parts = engine_memory(shape, share, gpu_gib, kv_gib=engine.settings.kv_cache_gib, size=engine.size)
            memory |= dict.fromkeys(engine.roles, parts)
        memory[RETRIEVAL] = memory[EMBEDDER] = retrieval_memory(embedder, size)
        if config.cluster.shard.gpus and (corpora := _corpora(config)):
            memory[SHARD] = shard_memory(*max(corpora), config.retrieval.shards)
    return memory


def _corpora(config: Config) -> list[tuple[int, int]]:
    """Return number and width of the vectors of each split that is there."""
    folder = DatasetFolder(config.data.root)
    files = [folder.video_embeddings(split) for split in config.data.splits]
    return [read_array(file, mapped=True).shape for file in files if file.is_file()]


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


def cached_requests(config: Config, memory: dict[str, Parts]) -> dict[str, int]:
    """Return by role how many requests of the greatest length the key-value cache of an engine holds.

    Args:
        memory: by role, as of `gpu_memory`.
    """
    counts: dict[str, int] = {}
    for engine in _engines(config):
        for role in memory.keys() & engine.roles:
            tokens = (
                memory[role]["key-value cache"] * 2**30 / kv_token_bytes(ModelShape.read(engine.folder), engine.size)
            )
            counts[role] = max(0, int(tokens / engine.settings.max_model_len))
    return counts


def unsized(config: Config) -> list[str]:
    """Return a line if Stage 2's engines share GPUs and their cache has no size.

    To find what is left for it, vLLM measures how the used memory of the whole GPU grows while it starts, and a learner
    rank beside it grows then too.
    """
    engine, share = config.rollout.engine, config.cluster.rollout.gpus
    if config.model.device == "cpu" or not 0 < share < 1 or engine.kv_cache_gib or engine.kv_blocks:
        return []
    return [
        f"a rollout worker has a share of a GPU (cluster.rollout.gpus={share:g}), and vLLM takes what a learner rank "
        "allocates there meanwhile for its own, so its cache needs a size: set rollout.engine.kv_cache_gib"
    ]


def too_small(config: Config, memory: dict[str, Parts]) -> list[str]:
    """Return a line for each engine that holds no request of the greatest length, so that vLLM would not start it."""
    counts = cached_requests(config, memory)
    return [
        f"a {role}'s engine has {memory[role]['key-value cache']:.1f} GiB for its key-value cache beside "
        f"{memory[role]['weights']:.1f} of weights, which hold no request of {engine.key}.max_model_len="
        f"{engine.settings.max_model_len}: raise {engine.key}.gpu_memory_utilization or kv_cache_gib, or lower that"
        for engine in _engines(config)
        for role in engine.roles
        if counts.get(role) == 0 and engine.settings.kv_blocks is None
    ]
