"""Forward passes of the policy over prompts with clips, and the latents that follow them.

The latents here are the oracle for the engine: one prefill, then one cached step a latent, which equals the
reference's full recomputation (method.md §1.4; tested). Rows are padded on the left, so the last column of every row is
its last token.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional
from transformers import DynamicCache
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

from vsr1.model.policy import VideoSearchPolicy
from vsr1.model.vision import Grid, VisionFeatures


@dataclass
class Row:
    """One sequence, and which clips of the batch the video tokens of its prompt show, in their order.

    Video tokens that were sampled are text. `positions` are those of `rotary_positions`, for a caller that keeps them.
    """

    prompt: list[int]
    response: list[int]
    clips: tuple[int, ...] = ()
    grids: tuple[Grid, ...] = ()  # of these clips
    positions: torch.Tensor | np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)


@dataclass
class ForwardState:
    """What a prefill leaves for the steps after it. B rows, T columns, H hidden width."""

    before_norm: torch.Tensor  # [B, T, H] residual stream before the final norm
    after_norm: torch.Tensor  # [B, T, H]
    attention_mask: torch.Tensor  # [B, T] 1 where there is a token
    last_position: torch.Tensor  # [B] rotary position of the last token, equal on all three axes
    cache: DynamicCache | None


def rotary_positions(row: Row, video_token: int, merge: int) -> torch.Tensor:
    """Return positions on the three rotary axes, int64 [3, T]; equal to the stock `get_rope_index` (tested).

    A word advances all three by one. A frame pair of h x w merged patches stands at one place in time, its patches at
    their row and column from there, and advances all three by the longer side once it is over.

    Raises:
        ValueError: the prompt has more or fewer video tokens than its clips' grids ask for.
    """
    is_video = np.asarray(row.prompt) == video_token
    clips = [np.zeros((3, 0), np.int64)]
    for pairs, height, width in row.grids:
        rows, columns = height // merge, width // merge
        pair = np.zeros((3, rows * columns), np.int64)  # of each patch its row, its column and what it advances by
        pair[:2] = np.indices((rows, columns)).reshape(2, -1)
        pair[2, -1] = max(rows, columns)
        clips.append(np.tile(pair, pairs))
    patches = np.concatenate(clips, axis=1)
    if is_video.sum() != patches.shape[1]:
        raise ValueError(
            f"a row has {is_video.sum()} video tokens, the grids {row.grids} of its clips ask for {patches.shape[1]}"
        )
    tokens = np.zeros((3, len(is_video)), np.int64)
    tokens[2] = 1
    tokens[:, is_video] = patches
    down, across, advance = tokens
    base = np.cumsum(advance) - advance
    response = np.arange(len(row.response)) + advance.sum()
    axes = [np.concatenate([base + offset, response]) for offset in (0, down, across)]
    return torch.from_numpy(np.stack(axes))


def prefill(
    model: Qwen3VLModel, rows: list[Row], features: list[VisionFeatures], *, keep_cache: bool, pad_token: int = 0
) -> ForwardState:
    """Run the language model over rows of any length.

    Args:
        model: the Qwen3-VL body, of the policy or of the embedder.
        rows: B sequences.
        features: vision features of the clips that rows name. Features that no row shows change nothing, but they are
            in the graph, with gradients of zero, where shown ones would be.
        keep_cache: keep keys and values for `roll_latents` (gradients flow through them).
    """
    text = model.language_model
    device = text.embed_tokens.weight.device
    video_token = model.config.video_token_id
    merge = model.config.vision_config.spatial_merge_size
    width = max(len(row) for row in rows)
    ids = np.full((len(rows), width), pad_token)
    mask = np.zeros((len(rows), width), np.int64)
    positions = np.zeros((3, len(rows), width), np.int64)
    is_prompt = np.zeros((len(rows), width), bool)
    for i, row in enumerate(rows):
        start = width - len(row)
        ids[i, start:] = row.prompt + row.response
        mask[i, start:] = 1
        is_prompt[i, start : start + len(row.prompt)] = True
        own = rotary_positions(row, video_token, merge) if row.positions is None else row.positions
        positions[:, i, start:] = own
    ids, mask, positions, is_video = (
        torch.from_numpy(array).to(device) for array in (ids, mask, positions, is_prompt & (ids == video_token))
    )

    embeds = text.embed_tokens(ids)
    shown = [features[clip] for row in rows for clip in row.clips] or [part.empty() for part in features[:1]]
    deepstack = None
    if shown:
        tokens = torch.cat([feature.tokens for feature in shown])
        embeds = embeds.masked_scatter(is_video[..., None], tokens.to(embeds.dtype))
        levels = range(len(shown[0].deepstack))
        deepstack = [torch.cat([feature.deepstack[level] for feature in shown]) for level in levels]
    cache = DynamicCache(config=text.config) if keep_cache else None
    before, after = _run(text, embeds, mask, positions, cache, is_video if shown else None, deepstack)
    return ForwardState(before, after, mask, positions[0, :, -1], cache)


def roll_latents(
    policy: VideoSearchPolicy,
    state: ForwardState,
    depth: int,
    noise: torch.Tensor | None = None,
    actions: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the latents after the last column, which must be the refine token of every row: float32 [B, depth, R].

    The first comes from the state before the final norm, the others from states after it (method.md §1.4). The state
    can be rolled again.

    Args:
        noise: [B, depth, R], added to each latent before the next one is computed.
        actions: [B, depth, R], latents that were sampled: the result is the mean of each after those before it.

    Raises:
        ValueError: the state has no cache.
    """
    if state.cache is None:
        raise ValueError("roll_latents needs prefill(..., keep_cache=True)")
    state.cache.crop(state.after_norm.shape[1] - state.cache.get_seq_length())  # what an earlier roll has added
    draws = [0.0] * depth if noise is None else noise.unbind(dim=1)
    latents = [policy.latent(state.before_norm[:, -1]) + draws[0]]
    mask, position = state.attention_mask, state.last_position
    for k in range(1, depth):
        mask = functional.pad(mask, (0, 1), value=1)
        position = position + 1
        last = latents[-1] if actions is None else actions[:, k - 1]
        step = policy.latent_input(last)[:, None].to(state.after_norm)
        _, after = _run(policy.model.language_model, step, mask, position.expand(3, 1, -1).mT, state.cache, None, None)
        latents.append(policy.latent(after[:, -1]) + draws[k])
    return torch.stack(latents, dim=1).float()


def token_logprobs(
    policy: VideoSearchPolicy, state: ForwardState, rows: list[Row], temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-probs of every row's response, and the entropies of their distributions.

    Only these columns meet the vocabulary, some at a time (`VocabularyHead`), so no table over all of them is held.

    Returns:
        logprobs and entropies, float32 [response tokens of all rows], rows one after another.
    """
    width = state.after_norm.shape[1]
    at = np.concatenate([i * width + np.arange(width - len(row.response) - 1, width - 1) for i, row in enumerate(rows)])
    states = state.after_norm.flatten(0, 1)[torch.from_numpy(at).to(state.after_norm.device)]
    targets = [token for row in rows for token in row.response]
    chosen, entropies = policy.lm_head(states, torch.tensor(targets, device=states.device), temperature)
    return chosen, entropies


def _run(
    text: torch.nn.Module,
    embeds: torch.Tensor,
    mask: torch.Tensor,
    positions: torch.Tensor,
    cache: DynamicCache | None,
    is_video: torch.Tensor | None,
    deepstack: list[torch.Tensor] | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the language model once; returns its states before and after the final norm."""
    before: list[torch.Tensor] = []
    hook = text.norm.register_forward_pre_hook(lambda _module, args: before.append(args[0]))
    try:
        after = text(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
            visual_pos_masks=is_video,
            deepstack_visual_embeds=deepstack,
        ).last_hidden_state
    finally:
        hook.remove()
    return before[0], after
