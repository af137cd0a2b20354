"""How much memory of a GPU a role takes, reckoned from the sizes of its models and from its settings; pure arithmetic.

Within 10 % of what learner, engine, query embedder and shard took on an H100, which `tests/unit/test_footprint.py` has.
Of one layer and token, backward needs the results of the products and what they were made of. For the 2B shape
(hidden 2,048, queries 2,048, keys 1,024, inside 6,144) in bfloat16:

    residual, o, down   3 x 2,048
    queries, attention  2 x 2,048
    keys, values        2 x 1,024
    gate, up, product   3 x 6,144
                       = 30,720 numbers = 61 kB a token and layer;  2,048 = 4 kB where the layer is computed again
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GIB = 2**30
MASTER_BYTES = 12  # of a trained parameter in bfloat16: a float32 copy and Adam's two moments
FAISS_WORK_GIB = 1.5  # that `StandardGpuResources` takes of a large GPU before any search
CONTEXT_GIB = 0.5  # of CUDA, in each process
GRAPHS_GIB = 0.9  # of an engine beside weights and cache, beyond its share: graphs, and what it computes with
BUFFERS = 3  # of DeepSpeed, each of at most `BUFFER` numbers: two to reduce gradients, one to gather weights
BUFFER = 5e8
SCORE_BYTES = 8  # of a scored word and vocabulary entry: logits, their float32 copy, gradients
GPU_GIB = {"H200": 141, "H100": 80, "B200": 180, "A100": 40, "L40S": 48, "L4": 24, "A10G": 24}  # least that is sold


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a Qwen3-VL, with or without the policy's heads.

    Attributes:
        joined: width of the merged patches that make a video token.
        mergers: of the vision tower, the ones for deeper layers included.
    """

    layers: int
    hidden: int
    inside: int
    queries: int
    keys: int
    words: int
    is_tied: bool
    blocks: int
    vision: int
    vision_inside: int
    joined: int
    mergers: int
    patch: int
    latent: int

    @classmethod
    def read(cls, folder: Path) -> ModelShape:
        """Read the sizes from a checkpoint folder's `config.json`."""
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        text, vision = config["text_config"], config["vision_config"]
        width = text["head_dim"]
        return cls(
            layers=text["num_hidden_layers"],
            hidden=text["hidden_size"],
            inside=text["intermediate_size"],
            queries=width * text["num_attention_heads"],
            keys=width * text["num_key_value_heads"],
            words=text["vocab_size"],
            is_tied=config.get("tie_word_embeddings", text.get("tie_word_embeddings", False)),
            blocks=vision["depth"],
            vision=vision["hidden_size"],
            vision_inside=vision["intermediate_size"],
            joined=vision["hidden_size"] * vision["spatial_merge_size"] ** 2,
            mergers=1 + len(vision["deepstack_visual_indexes"]),
            patch=vision["in_channels"] * vision["temporal_patch_size"] * vision["patch_size"] ** 2,
            latent=config.get("refine_dim", 0),
        )

    @property
    def text_parameters(self) -> int:
        """Parameters of the language model, its word tables and the heads."""
        layer = self.hidden * (2 * self.queries + 2 * self.keys + 3 * self.inside)
        return self.layers * layer + self.words * self.hidden * (2 - self.is_tied) + 2 * self.latent * self.hidden

    @property
    def merger_parameters(self) -> int:
        return self.mergers * self.joined * (self.joined + self.hidden)

    @property
    def parameters(self) -> int:
        """All parameters but norms and biases."""
        block = self.vision * (4 * self.vision + 2 * self.vision_inside)
        return self.text_parameters + self.merger_parameters + self.blocks * block + self.patch * self.vision

    @property
    def layer_numbers(self) -> int:
        """Numbers that backward needs of a layer for each token."""
        return 3 * self.hidden + 2 * self.queries + 2 * self.keys + 3 * self.inside


@dataclass(frozen=True)
class Pass:
    """The largest forward and backward pass of a learner rank.

    Attributes:
        tokens: in it, a prompt that replies share counted once.
        words: scored ones.
        clips: video tokens, where the mergers are trained; else 0.
        recomputed: layers.
        rolls: latents are rolled out without gradient first, which keeps the keys of all tokens.
        is_alone: the step has no other pass, so no gradients wait meanwhile.
    """

    tokens: int
    words: int
    clips: int = 0
    recomputed: int = 0
    rolls: bool = False
    is_alone: bool = True


Parts = dict[str, float]  # GiB by what they are for


def learner_memory(
    policy: ModelShape, embedder: ModelShape, largest: Pass, *, ranks: int = 1, zero_stage: int = 1, size: int = 2
) -> Parts:
    """Return the memory that a rank uses at its peak, in GiB.

    PyTorch keeps more than that: 9 GiB more where it was measured, which it gives back before it fails.

    Args:
        size: bytes of a number of the models: 2 of bfloat16, 4 of float32, whose weights are their own master.
    """
    shared = {name: ranks if zero_stage >= stage else 1 for name, stage in {"o": 1, "g": 2, "w": 3}.items()}
    trained = policy.text_parameters + (policy.merger_parameters if largest.clips else 0)
    kept, numbers = policy.layers - largest.recomputed, policy.layer_numbers
    layers = kept * numbers + largest.recomputed * policy.hidden + (2 if largest.recomputed else 1) * numbers
    inputs = policy.hidden * policy.mergers  # of the first layers
    rolled = 2 * policy.keys * policy.layers if largest.rolls else 0
    merged = 3 * policy.joined * policy.mergers * largest.clips
    parts = {
        "weights": policy.parameters * size / shared["w"],
        "embedder": (embedder.parameters - (0 if embedder.is_tied else embedder.words * embedder.hidden)) * size,
        "optimiser": trained * (MASTER_BYTES if size == 2 else 8) / shared["o"],
        "gradients": 0.0 if largest.is_alone else trained * size / shared["g"],
        "activations": size * (largest.tokens * (layers + inputs + rolled) + merged),
        "scores": float(SCORE_BYTES * policy.words * largest.words),
        "buffers": BUFFERS * min(BUFFER, trained) * size,
    }
    return {name: value / GIB for name, value in parts.items()}


def engine_memory(policy: ModelShape, share: float, gpu_gib: float, *, kv_gib: float | None, size: int = 2) -> Parts:
    """Return the memory of a vLLM engine, in GiB.

    Args:
        share: of the GPU that it takes (`gpu_memory_utilization`): what weights leave of it is the key-value cache.
        kv_gib: size of that cache, where it is set.
    """
    weights = policy.parameters * size / GIB
    cache = share * gpu_gib - weights if kv_gib is None else kv_gib
    return {"weights": weights, "key-value cache": cache, "context": CONTEXT_GIB, "graphs": GRAPHS_GIB}


def kv_token_bytes(policy: ModelShape, size: int = 2) -> int:
    """Return the bytes of a token in the key-value cache."""
    return 2 * policy.layers * policy.keys * size


def retrieval_memory(embedder: ModelShape, size: int = 2) -> Parts:
    """Return the memory of the query embedder, in GiB."""
    return {"weights": embedder.parameters * size / GIB, "context": CONTEXT_GIB}


def index_gib(vectors: int, width: int) -> float:
    """Return the memory of an exact index of float32 vectors, in GiB; the shards divide it."""
    return vectors * width * 4 / GIB


def shard_memory(vectors: int, width: int, shards: int) -> Parts:
    """Return the memory of a GPU that a shard takes there, in GiB: its vectors and the room in which FAISS works."""
    return {"vectors": index_gib(vectors, width) / shards, "work": FAISS_WORK_GIB, "context": CONTEXT_GIB}


def video_tokens(frames: int, pixels: int, patch: int = 16, merge: int = 2) -> int:
    """Return the tokens of a clip: a token for each `merge` x `merge` patches of two frames."""
    return -(-frames // 2) * -(-pixels // (patch * merge) ** 2)
