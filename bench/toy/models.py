"""Tiny models of the real architecture: a Qwen3-VL policy with heads and a Qwen3-VL embedder, from random weights.

Both come as checkpoint folders that the ordinary loaders read; only the sizes differ from the released models.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import (
    PreTrainedTokenizerBase,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLModel,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from bench.toy.tokenizer import END_OF_TEXT, TURN_END, embedder_tokenizer, policy_tokenizer
from vsr1.model.checkpoint import save_policy
from vsr1.model.policy import VideoSearchPolicy

HIDDEN, LAYERS, VISION_HIDDEN, VISION_LAYERS = 192, 4, 128, 3
PATCH, MERGE = 16, 2


def toy_config(tokenizer: PreTrainedTokenizerBase, refine_dim: int = HIDDEN) -> Qwen3VLConfig:
    """Return a Qwen3-VL configuration with about 3 million parameters over this tokenizer's vocabulary."""
    return Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": HIDDEN,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "intermediate_size": 512,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "mrope_section": [6, 5, 5],
                "mrope_interleaved": True,
            },
        },
        vision_config={
            "depth": VISION_LAYERS,
            "hidden_size": VISION_HIDDEN,
            "num_heads": 4,
            "intermediate_size": 256,
            "out_hidden_size": HIDDEN,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
        tie_word_embeddings=True,
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        eos_token_id=tokenizer.convert_tokens_to_ids(TURN_END),
        pad_token_id=tokenizer.convert_tokens_to_ids(END_OF_TEXT),
        refine_dim=refine_dim,
        refine_embedder_dim=HIDDEN,
    )


def config_2b(tokenizer: PreTrainedTokenizerBase) -> Qwen3VLConfig:
    """Return a configuration with the sizes of Qwen3-VL-2B over any tokenizer; for benchmarks with random weights."""
    config = toy_config(tokenizer, refine_dim=2048)
    text = config.text_config
    text.vocab_size, text.hidden_size, text.intermediate_size, text.num_hidden_layers = 151_936, 2048, 6144, 28
    text.num_attention_heads, text.num_key_value_heads, text.head_dim = 16, 8, 128
    text.max_position_embeddings = 32_768
    text.rope_parameters |= {"rope_theta": 5_000_000.0, "mrope_section": [24, 20, 20]}
    vision = config.vision_config
    vision.depth, vision.hidden_size, vision.num_heads, vision.intermediate_size = 24, 1024, 16, 4096
    vision.out_hidden_size, vision.num_position_embeddings = 2048, 2304
    vision.deepstack_visual_indexes = [5, 11, 17]
    config.refine_embedder_dim = 2048
    return config


def toy_processor(tokenizer: PreTrainedTokenizerBase) -> Qwen3VLProcessor:
    """Return the processor; its pixel limits leave 64 by 64 frames as they are, up to 64 of them."""
    sizes = {"patch_size": PATCH, "merge_size": MERGE, "temporal_patch_size": 2}
    half = [0.5, 0.5, 0.5]
    limits = {"shortest_edge": 2 * 32 * 32, "longest_edge": 64 * 64 * 64}
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**sizes, size=limits, image_mean=half, image_std=half),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(**sizes, size=limits, do_sample_frames=False, cap_pixels_per_frame=False),
        chat_template=tokenizer.chat_template,
    )


def new_policy(words: Tokenizer | Path, seed: int) -> tuple[VideoSearchPolicy, Qwen3VLProcessor]:
    """Make a policy of random weights and its processor.

    Args:
        words: the base of its tokenizer, or a folder of which policy/ has the processor.
    """
    processor = (
        Qwen3VLProcessor.from_pretrained(words / "policy")
        if isinstance(words, Path)
        else toy_processor(policy_tokenizer(words))
    )
    torch.manual_seed(seed)
    return VideoSearchPolicy(toy_config(processor.tokenizer)), processor


def new_embedder(words: Tokenizer | Path, seed: int) -> tuple[Qwen3VLModel, Qwen3VLProcessor]:
    """Make an embedder of random weights and its processor; `words` as of `new_policy`, of embedder/."""
    processor = (
        Qwen3VLProcessor.from_pretrained(words / "embedder")
        if isinstance(words, Path)
        else toy_processor(embedder_tokenizer(words))
    )
    torch.manual_seed(seed)
    return Qwen3VLModel(toy_config(processor.tokenizer)), processor


def write_random_models(folder: Path, base: Tokenizer, seed: int = 0) -> tuple[Path, Path]:
    """Write untrained policy and embedder folders, for tests.

    Returns:
        the policy's folder and the embedder's.
    """
    policy, policy_processor = new_policy(base, seed)
    embedder, embedder_processor = new_embedder(base, seed + 1)
    save_policy(folder / "policy", policy, policy_processor)
    embedder.save_pretrained(folder / "embedder")
    embedder_processor.save_pretrained(folder / "embedder")
    return folder / "policy", folder / "embedder"
