"""A policy out of a stock Qwen3-VL checkpoint: the refine token and new heads, as a folder that the loaders read.

The folder appears whole or not at all, and follows from the two checkpoints and the seed.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AddedToken, AutoTokenizer, Qwen3VLConfig

from vsr1.formats.atomic import replacing_folder
from vsr1.model.checkpoint import CheckpointError, copy_processor, save_policy, weight_files, weight_shapes
from vsr1.model.policy import HEAD_NAMES, REFINE_TOKEN, VideoSearchPolicy, init_heads

NEUTRAL_WORD = " the"
_WORD_TABLE = "embed_tokens.weight"


def lacks_heads(folder: Path, *, allow_bin: bool = False) -> bool:
    """Tell whether a checkpoint has none of the policy's heads; one that has only some of them is broken."""
    return not any(key.startswith(HEAD_NAMES) for key in weight_shapes(folder, allow_bin=allow_bin))


def write_new_policy(base: Path, embedder: Path, target: Path, *, seed: int) -> None:
    """Write the policy that Stage 1 starts from.

    The refine token takes the next row of the word table, which grows if it has none to spare, and starts as the mean
    of the words. Latents are as wide as the embedder. Weights keep the base's dtype.

    Args:
        base: Qwen3-VL checkpoint without heads.
        embedder: checkpoint of the embedder.
        target: the folder to write; one that is there is replaced.
        seed: of the heads' random values.

    Raises:
        CheckpointError: a folder without weights, or an embedder without a word table.
    """
    config = Qwen3VLConfig.from_pretrained(base)
    config.refine_dim = config.refine_embedder_dim = _word_table(embedder).shape[1]
    policy = VideoSearchPolicy.from_pretrained(base, config=config, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(base)
    if REFINE_TOKEN not in tokenizer.get_vocab():
        words = len(tokenizer)
        tokenizer.add_tokens([AddedToken(REFINE_TOKEN, special=True)])
        if len(tokenizer) > policy.get_input_embeddings().weight.shape[0]:
            policy.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        with torch.no_grad():
            for part in {policy.get_input_embeddings(), policy.get_output_embeddings()}:
                part.weight[words] = part.weight[:words].float().mean(0)
    start_heads(policy, embedder, seed=seed)
    with replacing_folder(target) as part:
        copy_processor(base, part)
        tokenizer.save_pretrained(part)
        save_policy(part, policy)


def start_heads(policy: VideoSearchPolicy, embedder: Path, *, seed: int) -> None:
    """Give the heads of a policy their start values, for the embedder in this folder."""
    table = _word_table(embedder)
    [neutral, *_] = AutoTokenizer.from_pretrained(embedder).encode(NEUTRAL_WORD, add_special_tokens=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        init_heads(policy, float(table.square().mean().sqrt()), table[neutral])


def _word_table(folder: Path) -> torch.Tensor:
    """Return the embeddings of a checkpoint's words, float32 [words, E]."""
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as handle:
            for key in handle.keys():  # noqa: SIM118
                if key.endswith(_WORD_TABLE):
                    return handle.get_tensor(key).float()
    raise CheckpointError(f"{folder} has no word table (a key that ends in {_WORD_TABLE}); is it an embedder?")
