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

from vsr1.model.attention import DEFAULTS, LayerOptions

Grid = tuple[int, int, int]  # frame pairs, patch rows, patch columns


@dataclass
class VisionFeatures:
    """Features of one clip: n = frame pairs times merged patches.

    `tokens` [n, H] replaces the video tokens' embeddings; `deepstack`, one [n, H] a level, is added to early layers.
    """

    tokens: torch.Tensor
    deepstack: list[torch.Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes of all features."""
        return self.tokens.nbytes + sum(level.nbytes for level in self.deepstack)

    def clone(self) -> VisionFeatures:
        """Return a copy that keeps no other clip's features in memory."""
        return VisionFeatures(self.tokens.clone(), [level.clone() for level in self.deepstack])

    def empty(self) -> VisionFeatures:
        """Return features of no patch (n = 0) that are still in the graph."""
        return VisionFeatures(self.tokens[:0], [level[:0] for level in self.deepstack])


def encode_clips(
    visual: Qwen3VLVisionModel, pixels: list[torch.Tensor], grids: list[Grid], options: LayerOptions = DEFAULTS
) -> list[VisionFeatures]:
    """Run the vision tower over clips of any sizes; every module of it is called once (the ranks' rule, `vsr1.rl`).

    In names of tensors P counts the patches of all clips, those of one frame size one after another, W those of one
    frame pair of each size, and D is the tower's width.

    Args:
        visual: the tower of a Qwen3-VL model.
        pixels: per clip, flattened patches [t*h*w, channels*2*patch*patch] as the video processor makes them.
        grids: per clip (t, h, w) in patches; at least one clip.
        options: of the blocks, none of which is computed again.
    """
    device = visual.patch_embed.proj.weight.device
    sizes = sorted({grid[1:] for grid in grids})
    order = sorted(range(len(grids)), key=lambda i: grids[i][1:])
    frames = [sum(grid[0] for grid in grids if grid[1:] == size) for size in sizes]
    tables = [
        _tables(size, visual.num_grid_per_side, visual.interpolation_mode, visual.spatial_merge_size, device)
        for size in sizes
    ]
    hidden_PD = visual.patch_embed(torch.cat([pixels[i].to(device) for i in order]))
    corners_W4D = visual.pos_embed(torch.cat([indices for indices, _, _ in tables]))
    weights_W4 = torch.cat([weights for _, weights, _ in tables])
    places_WD = (corners_W4D * weights_W4[:, :, None]).sum(1).to(hidden_PD.dtype)
    windows = [h * w for h, w in sizes]
    angles_W = visual.rotary_pos_emb(hidden_PD, torch.cat([positions for _, _, positions in tables]))

    def of_patches(values: torch.Tensor) -> torch.Tensor:
        """Repeat what there is of each place in a frame pair [W, n] for all pairs [P, n]."""
        return torch.cat([part.repeat(n, 1) for part, n in zip(values.split(windows), frames, strict=True)])

    hidden_PD, angles = hidden_PD + of_patches(places_WD), [of_patches(part) for part in angles_W]
    project, finish = options.fused(_project), options.fused(_finish)
    levels = []
    for depth, block in enumerate(visual.blocks):
        mixed = _attend(*project(block, hidden_PD, *angles), frames, windows, block.attn.scaling)
        hidden_PD = finish(block, hidden_PD, mixed)
        if depth in visual.deepstack_visual_indexes:
            merger = visual.deepstack_merger_list[visual.deepstack_visual_indexes.index(depth)]
            levels.append(merger(hidden_PD))
    tokens = visual.merger(hidden_PD)

    counts = [grids[i][0] * grids[i][1] * grids[i][2] // visual.spatial_merge_unit for i in order]
    split_levels = [level.split(counts) for level in levels]
    features = {
        i: VisionFeatures(token, [level[j] for level in split_levels])
        for j, (i, token) in enumerate(zip(order, tokens.split(counts), strict=True))
    }
    return [features[i] for i in range(len(grids))]


def blank_clip(visual: Qwen3VLVisionModel) -> tuple[torch.Tensor, Grid]:
    """Return pixels and grid of the smallest clip, all zeros: for a pass that shows none but must run the tower."""
    config, side = visual.config, visual.spatial_merge_size
    width = config.in_channels * config.temporal_patch_size * config.patch_size**2
    weight = visual.patch_embed.proj.weight
    return torch.zeros(side * side, width, device=weight.device), (1, side, side)


def _project(
    block: torch.nn.Module, hidden: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return queries, keys and values of patches, [P, heads, head width] each."""
    attention = block.attn
    parts = attention.qkv(block.norm1(hidden)).view(len(hidden), 3, attention.num_heads, -1)
    query, key, value = parts.unbind(1)
    return *apply_rotary_pos_emb_vision(query, key, cosines, sines), value


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    frames: list[int],
    windows: list[int],
    scale: float,
) -> torch.Tensor:
    """Attend inside each frame pair; returns [P, D].

    Args:
        query: [P, heads, head width], pairs of a frame size one after another; `key` and `value` alike.
        frames: pairs of each size.
        windows: patches of a pair of each size.
    """
    mixed = []
    lengths = [n * window for n, window in zip(frames, windows, strict=True)]
    for parts, n in zip(zip(*(part.split(lengths) for part in (query, key, value)), strict=True), frames, strict=True):
        q, k, v = (part.unflatten(0, (n, -1)).transpose(1, 2) for part in parts)
        read = functional.scaled_dot_product_attention(q, k, v, scale=scale)
        mixed.append(read.transpose(1, 2).flatten(0, 1).flatten(1))
    return torch.cat(mixed)


def _finish(block: torch.nn.Module, hidden: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
    hidden = hidden + block.attn.proj(mixed)
    return hidden + block.mlp(block.norm2(hidden))


@lru_cache(maxsize=64)
def _tables(
    size: tuple[int, int], side: int, mode: str, merge: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return interpolation indices, their weights and rotary positions of one frame pair of `size` patches."""
    grid = torch.tensor([[1, *size]])
    indices, weights = get_vision_interpolation_indices_and_weights(
        grid, num_grid_per_side=side, mode=mode, align_corners=True, spatial_merge_size=merge, kwargs={}
    )
    positions = get_vision_position_ids(grid, merge, kwargs={})
    return indices.to(device), weights.to(device), positions.to(device)
