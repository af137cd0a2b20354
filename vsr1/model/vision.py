"""Vision features of whole clips, many at once.

Equal to the stock vision tower (tested), but position tables are computed once a frame size, and all frame pairs of one
size are attended in one call, where the stock code makes one call a frame pair.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch.nn import functional
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel, apply_rotary_pos_emb_vision
from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids

Grid = tuple[int, int, int]  # frame pairs, patch rows, patch columns


@dataclass
class VisionFeatures:
    """Features of one clip: n = frame pairs times merged patches.

    `tokens` [n, H] replaces the video tokens' embeddings; `deepstack`, one [n, H] a level, is added to early layers.
    """

    tokens: torch.Tensor
    deepstack: list[torch.Tensor]


def encode_clips(visual: Qwen3VLVisionModel, pixels: list[torch.Tensor], grids: list[Grid]) -> list[VisionFeatures]:
    """Run the vision tower over clips of any sizes.

    Args:
        visual: the tower of a Qwen3-VL model.
        pixels: per clip, flattened patches [t*h*w, channels*2*patch*patch] as the video processor makes them.
        grids: per clip (t, h, w) in patches.
    """
    features: list[VisionFeatures | None] = [None] * len(grids)
    for size in sorted({grid[1:] for grid in grids}):
        members = [i for i, grid in enumerate(grids) if grid[1:] == size]
        for i, feature in zip(members, _encode_one_size(visual, pixels, grids, members, size), strict=True):
            features[i] = feature
    return [feature for feature in features if feature is not None]


def _encode_one_size(
    visual: Qwen3VLVisionModel, pixels: list[torch.Tensor], grids: list[Grid], members: list[int], size: tuple[int, int]
) -> list[VisionFeatures]:
    weight = visual.patch_embed.proj.weight
    indices, weights, positions = _tables(
        size, visual.num_grid_per_side, visual.interpolation_mode, visual.spatial_merge_size, weight.device
    )
    window = size[0] * size[1]
    hidden = visual.patch_embed(torch.cat([pixels[i] for i in members]).to(weight.device))
    hidden = hidden.view(-1, window, hidden.shape[-1])
    hidden = hidden + (visual.pos_embed(indices) * weights[:, :, None]).sum(1).to(hidden.dtype)
    rotary = visual.rotary_pos_emb(hidden, positions)

    levels = []
    for depth, block in enumerate(visual.blocks):
        hidden = hidden + _attend(block.attn, block.norm1(hidden), rotary)
        hidden = hidden + block.mlp(block.norm2(hidden))
        if depth in visual.deepstack_visual_indexes:
            merger = visual.deepstack_merger_list[visual.deepstack_visual_indexes.index(depth)]
            levels.append(merger(hidden))
    tokens = visual.merger(hidden)

    counts = [grids[i][0] * window // visual.spatial_merge_unit for i in members]
    split_levels = [level.view(-1, level.shape[-1]).split(counts) for level in levels]
    split_tokens = tokens.view(-1, tokens.shape[-1]).split(counts)
    return [VisionFeatures(split_tokens[j], [level[j] for level in split_levels]) for j in range(len(members))]


def _attend(
    attention: torch.nn.Module, hidden: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    """Self-attention inside each window: hidden [windows, patches, D]."""
    windows, patches, width = hidden.shape
    query, key, value = (
        attention.qkv(hidden).view(windows, patches, 3, attention.num_heads, -1).permute(2, 0, 1, 3, 4).unbind(0)
    )
    query, key = apply_rotary_pos_emb_vision(query, key, *rotary)
    mixed = functional.scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), scale=attention.scaling
    )
    return attention.proj(mixed.transpose(1, 2).reshape(windows, patches, width))


@lru_cache(maxsize=64)
def _tables(
    size: tuple[int, int], side: int, mode: str, merge: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Interpolation indices, their weights and rotary positions of one frame pair of `size` patches."""
    grid = torch.tensor([[1, *size]])
    indices, weights = get_vision_interpolation_indices_and_weights(
        grid, num_grid_per_side=side, mode=mode, align_corners=True, spatial_merge_size=merge, kwargs={}
    )
    positions = get_vision_position_ids(grid, merge, kwargs={})
    return indices.to(device), weights.to(device), positions.to(device)
