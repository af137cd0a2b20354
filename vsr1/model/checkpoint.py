"""Checkpoint folders of the policy: Hugging Face layout, safetensors, head keys at top level.

A load takes every key it needs or fails with the whole list of what does not fit; a save can be loaded by stock
Hugging Face (method.md §1.3, §1.7).
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoTokenizer, Qwen3VLConfig

from vsr1.model.policy import REFINE_TOKEN, VideoSearchPolicy
from vsr1.storage import fetched_folder, named

if TYPE_CHECKING:  # the processor module needs torchvision, which a driver does without
    from transformers import PreTrainedTokenizerBase, Qwen3VLProcessor

ARCHITECTURE = "Qwen3VLForConditionalGeneration"


class CheckpointError(ValueError):
    """A folder that is not a usable policy checkpoint; the message lists every mismatch."""


@dataclass(frozen=True)
class PolicySizes:
    """H, R and E of a policy folder, the rows of its word table, and the tokens of its longest sequence."""

    hidden: int
    latent: int
    embedder: int
    vocabulary: int
    positions: int


def weight_files(folder: Path, *, allow_bin: bool = False) -> list[Path]:
    """Return the weight files of a checkpoint, single or sharded.

    Args:
        allow_bin: take `pytorch_model*.bin` where there is no safetensors file; read with `weights_only`.

    Raises:
        CheckpointError: no such folder, no weights of an allowed kind, or a shard named by the index is missing.
    """
    if not fetched_folder(folder).is_dir():
        raise CheckpointError(f"checkpoint folder {named(folder)} does not exist")
    for name in ("model.safetensors", "pytorch_model.bin") if allow_bin else ("model.safetensors",):
        index = folder / f"{name}.index.json"
        if index.is_file():
            shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            missing = [shard for shard in shards if not (folder / shard).is_file()]
            if missing:
                raise CheckpointError(f"{folder}: shards named by {index.name} are missing: {', '.join(missing)}")
            return [folder / shard for shard in shards]
        if (folder / name).is_file():
            return [folder / name]
    hint = "; it has .bin files, which model.allow_bin=true reads" if any(folder.glob("*.bin")) else ""
    raise CheckpointError(f"{folder} has no safetensors weights{hint}")


def weight_shapes(folder: Path, *, allow_bin: bool = False) -> dict[str, tuple[int, ...]]:
    """Return the shape of every stored tensor, without reading its values."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in weight_files(folder, allow_bin=allow_bin):
        if path.suffix == ".bin":
            state = torch.load(path, mmap=True, weights_only=True)
            shapes |= {name: tuple(tensor.shape) for name, tensor in state.items()}
            continue
        with safe_open(path, framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118
                shapes[name] = tuple(handle.get_slice(name).get_shape())
    return shapes


def policy_sizes(folder: Path, *, allow_bin: bool = False, embedder_width: int | None = None) -> PolicySizes:
    """Compare a folder with the policy's contract (method.md §1.3), from headers, configuration and tokenizer.

    Args:
        embedder_width: hidden width of the embedder that will take the soft tokens, where it is known.

    Raises:
        CheckpointError: missing, misshapen or unknown keys, a tokenizer without the refine token or with more tokens
            than the word table has rows, or heads for another embedder: every mismatch in one message.
    """
    folder = Path(folder)
    shapes = weight_shapes(folder, allow_bin=allow_bin)
    config = Qwen3VLConfig.from_pretrained(folder)
    hidden = int(config.text_config.hidden_size)
    latent = shapes.get("refine_projector.0.weight", (hidden,))[0]
    embedder = shapes.get("refine_append_input_projector.1.weight", (hidden,))[0]
    config.refine_dim, config.refine_embedder_dim = latent, embedder
    with torch.device("meta"):
        wanted = {name: tuple(tensor.shape) for name, tensor in VideoSearchPolicy(config).state_dict().items()}
    if config.tie_word_embeddings:
        wanted.pop("lm_head.weight")
        shapes.pop("lm_head.weight", None)
    faults = [f"missing {name}" for name in sorted(wanted.keys() - shapes.keys())]
    faults += [f"unknown {name}" for name in sorted(shapes.keys() - wanted.keys())]
    faults += [
        f"{name} is {list(shapes[name])}, not {list(wanted[name])}"
        for name in sorted(wanted.keys() & shapes.keys())
        if shapes[name] != wanted[name]
    ]
    rows = shapes.get("model.language_model.embed_tokens.weight", (config.text_config.vocab_size,))[0]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if REFINE_TOKEN not in tokenizer.get_vocab():
        faults.append(f"the tokenizer has no {REFINE_TOKEN}")
    if len(tokenizer) > rows:
        faults.append(f"the tokenizer has {len(tokenizer)} tokens, the word table {rows} rows")
    if embedder_width not in (None, embedder):
        faults.append(f"the heads make soft tokens of width {embedder}, the embedder takes {embedder_width}")
    if faults:
        raise CheckpointError(f"{folder} does not fit the policy: " + "; ".join(faults))
    return PolicySizes(hidden, latent, embedder, rows, int(config.text_config.max_position_embeddings))


def load_policy(
    folder: Path, *, device: str = "cpu", dtype: str = "float32", allow_bin: bool = False
) -> VideoSearchPolicy:
    """Read a policy with its heads; every key must be there with the right shape.

    Raises:
        CheckpointError: as `policy_sizes`.
    """
    folder = Path(folder)
    sizes = policy_sizes(folder, allow_bin=allow_bin)
    config = Qwen3VLConfig.from_pretrained(folder)
    config.refine_dim, config.refine_embedder_dim = sizes.latent, sizes.embedder
    is_bin = weight_files(folder, allow_bin=allow_bin)[0].suffix == ".bin"
    policy = VideoSearchPolicy.from_pretrained(
        folder, config=config, dtype=getattr(torch, dtype), use_safetensors=not is_bin, weights_only=True
    )
    return policy.to(device)


def refine_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id of the refine token.

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
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    if config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config.architectures = [ARCHITECTURE]
    config.save_pretrained(folder)
    shutil.copymode(folder / "config.json", folder / "model.safetensors")  # which is for its owner alone otherwise


def copy_processor(source: Path, target: Path) -> None:
    """Copy everything of a checkpoint folder but its weights and configuration."""
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        is_weights = path.suffix in (".safetensors", ".bin") or path.name.endswith(".index.json")
        if path.is_file() and not is_weights and path.name != "config.json":
            shutil.copy2(path, target / path.name)
