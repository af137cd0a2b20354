"""Checkpoint folders of the policy: Hugging Face layout, safetensors, head keys at top level.

A load takes every key it needs or fails with the whole list of what does not fit; a save can be loaded by stock
Hugging Face (method.md §1.3, §1.7).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import Qwen3VLConfig

from vsr1.model.policy import HEAD_NAMES, REFINE_TOKEN, VideoSearchPolicy

if TYPE_CHECKING:  # the processor module needs torchvision, which a driver does without
    from transformers import PreTrainedTokenizerBase, Qwen3VLProcessor

ARCHITECTURE = "Qwen3VLForConditionalGeneration"
_INDEX = "model.safetensors.index.json"


class CheckpointError(ValueError):
    """A folder that is not a usable policy checkpoint; the message lists every mismatch."""


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, single or sharded.

    Raises:
        CheckpointError: no such folder, no safetensors weights, or a shard named by the index is missing.
    """
    if not folder.is_dir():
        raise CheckpointError(f"checkpoint folder {folder} does not exist")
    if (folder / _INDEX).is_file():
        names = sorted(set(json.loads((folder / _INDEX).read_text())["weight_map"].values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise CheckpointError(f"{folder}: shards named by {_INDEX} are missing: {', '.join(missing)}")
        return [folder / name for name in names]
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    raise CheckpointError(f"{folder} has no safetensors weights; .bin files are not read")


def weight_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every stored tensor, from the headers alone."""
    shapes = {}
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118
                shapes[name] = tuple(handle.get_slice(name).get_shape())
    return shapes


def head_sizes(folder: Path) -> tuple[int, int]:
    """R and E of the stored heads.

    Raises:
        CheckpointError: a head is missing.
    """
    shapes = weight_shapes(folder)
    missing = [name for name in HEAD_NAMES if not any(key.startswith(f"{name}.") for key in shapes)]
    if missing:
        raise CheckpointError(f"{folder} has no weights for the heads {', '.join(missing)}; train Stage 1 first")
    return shapes["refine_projector.0.weight"][0], shapes["refine_append_input_projector.1.weight"][0]


def load_policy(folder: Path, *, device: str = "cpu", dtype: str = "float32") -> VideoSearchPolicy:
    """Read a policy with its heads; every key must be there with the right shape.

    Raises:
        CheckpointError: no weights, missing heads, or keys that are missing or misshapen, all of them listed.
    """
    folder = Path(folder)
    refine_dim, embedder_dim = head_sizes(folder)
    config = Qwen3VLConfig.from_pretrained(folder)
    config.refine_dim, config.refine_embedder_dim = refine_dim, embedder_dim
    policy, report = VideoSearchPolicy.from_pretrained(
        folder, config=config, dtype=getattr(torch, dtype), output_loading_info=True
    )
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    faults = [f"missing {key}" for key in sorted(set(report["missing_keys"]) - tied)]
    faults += [f"wrong shape {key}" for key in sorted(str(key) for key in report["mismatched_keys"])]
    if faults:
        raise CheckpointError(f"{folder} does not fit the policy: " + "; ".join(faults))
    return policy.to(device)


def refine_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Id of the refine token.

    Raises:
        CheckpointError: the tokenizer does not know it.
    """
    if REFINE_TOKEN not in tokenizer.get_vocab():
        raise CheckpointError(f"the tokenizer of {tokenizer.name_or_path} has no {REFINE_TOKEN}; this is not a policy")
    return int(tokenizer.convert_tokens_to_ids(REFINE_TOKEN))


def save_policy(folder: Path, policy: VideoSearchPolicy, processor: Qwen3VLProcessor | None = None) -> None:
    """Write a complete checkpoint folder.

    Args:
        folder: made if need be.
        policy: its weights are stored in their own dtype.
        processor: tokenizer and processor files to write beside the weights.
    """
    write_weights(folder, policy.config, policy.state_dict())
    if processor is not None:
        processor.save_pretrained(folder)


def write_weights(folder: Path, config: Qwen3VLConfig, state: dict[str, torch.Tensor]) -> None:
    """Store weights and configuration; a tied output table is left out, as Hugging Face does."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = {k: v.detach().cpu().contiguous() for k, v in state.items()}
    if config.tie_word_embeddings:
        kept.pop("lm_head.weight", None)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    config.architectures = [ARCHITECTURE]
    config.save_pretrained(folder)


def copy_processor(source: Path, target: Path) -> None:
    """Copy everything of a checkpoint folder but its weights and configuration."""
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.is_file() and path.suffix != ".safetensors" and path.name not in ("config.json", _INDEX):
            shutil.copy2(path, target / path.name)
