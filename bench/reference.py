"""The reference in Hugging Face: one padded prefill, then one cached step a latent, one after another.

Equal to the reference's full recomputation (method.md §1.4; tested). It is what the engine and the learner's passes are
compared with; nothing of the product runs it. Rows are padded on the left, so the last column of every row is its last
token.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from vsr1 import compat

compat.prepare()

from transformers import DynamicCache  # noqa: E402
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel  # noqa: E402

from vsr1.model.forward import Row, rotary_positions  # noqa: E402
from vsr1.model.policy import VideoSearchPolicy  # noqa: E402
from vsr1.model.vision import VisionFeatures  # noqa: E402


@dataclass
class ForwardState:
    """What a prefill leaves for the steps after it. B rows, T columns, H hidden width."""

    before_norm: torch.Tensor  # [B, T, H] residual stream before the final norm
    after_norm: torch.Tensor  # [B, T, H]
    attention_mask: torch.Tensor  # [B, T] 1 where there is a token
    last_position: torch.Tensor  # [B] rotary position of the last token, equal on all three axes
    cache: DynamicCache | None


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
