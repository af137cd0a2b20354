"""The layers of the language model over sequences laid one after another: no padding, and no mask over all pairs.

A pass is cut into segments. The tokens of a segment attend to pieces of keys that come before them, whole, and causally
to the segment itself, which is the last of its pieces. So replies can share the keys of one prompt, and latents can go
on from keys of a pass before: neither is computed again.

In shapes T counts the tokens of a pass, H is the model's width, D that of an attention head.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from itertools import accumulate

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb

KeysValues = tuple[torch.Tensor, torch.Tensor]  # of one layer, [T, key heads, D] each
FLASH_CAPABILITY = (8, 0)  # of the GPUs that FlashAttention runs on
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LayerOptions:
    """How layers are run, to the same result.

    `recompute` keeps the input of each layer only and computes the layer again in backward; `compiled` fuses what lies
    between the matrix products (`torch.compile`), which ZeRO-3 does not stand.
    """

    recompute: bool = False
    compiled: bool = False


DEFAULTS = LayerOptions()


class Segments:
    """What attends to what in a pass.

    Args:
        lengths: tokens of each segment; they add up to T.
        pieces: of each segment the pieces of keys that it attends to, by number, its own tokens last.
        key_lengths: tokens of every piece.
    """

    def __init__(
        self, lengths: list[int], pieces: list[list[int]], key_lengths: list[int], device: torch.device
    ) -> None:
        self.lengths, self.key_lengths, self._device = lengths, key_lengths, device
        self.order = [piece for own in pieces for piece in own]
        self.reach = [sum(key_lengths[piece] for piece in own) for own in pieces]
        self.starts, self.key_starts = (
            torch.tensor([0, *accumulate(part)], dtype=torch.int32, device=device) for part in (lengths, self.reach)
        )
        self.masks = lru_cache(maxsize=None)(self._mask)

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
        """Return what each token reads, [T, heads, D].

        Args:
            query: [T, heads, D].
            key: of all pieces, one after another, [tokens of the pieces, key heads, D]; `value` alike.
        """
        if self.order != list(range(len(self.key_lengths))):
            key, value = self._gathered(key), self._gathered(value)
        if flash := _flash(query.device, query.dtype):
            return flash(query, key, value, self, scale)
        parts = []
        shares = (query.split(self.lengths), key.split(self.reach), value.split(self.reach))
        for own, keys, values in zip(*shares, strict=True):
            mask = self.masks(len(own), len(keys))
            heads = (part.transpose(0, 1)[None] for part in (own, keys, values))
            part = functional.scaled_dot_product_attention(
                *heads, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=True
            )
            parts.append(part[0].transpose(0, 1))
        return torch.cat(parts)

    def _gathered(self, keys: torch.Tensor) -> torch.Tensor:
        """Return the pieces in the order of the segments; split and joined, so that gradients add up in order."""
        pieces = keys.split(self.key_lengths)
        return torch.cat([pieces[piece] for piece in self.order])

    def _mask(self, count: int, reach: int) -> torch.Tensor | None:
        if count == reach:
            return None
        return torch.ones(count, reach, dtype=torch.bool, device=self._device).tril(reach - count)


def run_layers(
    text: torch.nn.Module,
    hidden: torch.Tensor,
    positions: torch.Tensor,
    segments: Segments,
    *,
    shown: tuple[torch.Tensor, list[torch.Tensor]] | None = None,
    earlier: Sequence[KeysValues] | None = None,
    keep: bool = False,
    options: LayerOptions = DEFAULTS,
) -> tuple[torch.Tensor, torch.Tensor, list[KeysValues]]:
    """Run the layers once.

    Args:
        text: the language model of a Qwen3-VL.
        hidden: input embeddings [T, H].
        positions: rotary positions on the three axes, [3, T].
        segments: their pieces of keys are those of `earlier`, then those of this pass.
        shown: where video tokens are, int64 [n], and what each early layer adds to them, [n, H] a level.
        earlier: keys and values of a pass before, a pair a layer; gradients flow into them.
        keep: return keys and values, for a pass after this one.

    Returns:
        states before and after the final norm [T, H], and keys and values of this pass, none without `keep`.
    """
    angles = tuple(part[0] for part in text.rotary_emb(hidden[None], positions[:, None]))
    parts = _compiled() if options.compiled else (_project, _finish)
    kept = []
    for place, layer in enumerate(text.layers):
        arguments = layer, hidden, angles, segments, earlier[place] if earlier else None, parts
        if options.recompute and torch.is_grad_enabled():
            hidden, *own = checkpoint(_layer, *arguments, use_reentrant=False, preserve_rng_state=False)
        else:
            hidden, *own = _layer(*arguments)
        if keep:
            kept.append((own[0], own[1]))
        if shown is not None and place < len(shown[1]):
            hidden = hidden.index_add(0, shown[0], shown[1][place].to(hidden.dtype))
    return hidden, text.norm(hidden), kept


def _layer(
    layer: torch.nn.Module,
    hidden: torch.Tensor,
    angles: tuple[torch.Tensor, torch.Tensor],
    segments: Segments,
    earlier: KeysValues | None,
    parts: tuple[Callable[..., tuple[torch.Tensor, ...]], Callable[..., torch.Tensor]],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run one layer; returns states, keys and values of these tokens."""
    project, finish = parts
    query, key, value = project(layer, hidden, *angles)
    keys, values = (key, value) if earlier is None else (torch.cat([earlier[0], key]), torch.cat([earlier[1], value]))
    mixed = segments.attend(query, keys, values, layer.self_attn.scaling)
    return finish(layer, hidden, mixed), key, value


def _project(
    layer: torch.nn.Module, hidden: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    attention = layer.self_attn
    normed = layer.input_layernorm(hidden)
    shape = (normed.shape[0], -1, attention.head_dim)
    query = attention.q_norm(attention.q_proj(normed).view(shape))
    key = attention.k_norm(attention.k_proj(normed).view(shape))
    query, key = apply_rotary_pos_emb(query, key, cosines, sines)
    return query, key, attention.v_proj(normed).view(shape)


def _finish(layer: torch.nn.Module, hidden: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
    hidden = hidden + layer.self_attn.o_proj(mixed.flatten(1))
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden))


@lru_cache(maxsize=1)
def _compiled() -> tuple[Callable[..., tuple[torch.Tensor, ...]], Callable[..., torch.Tensor]]:
    return torch.compile(_project, dynamic=True), torch.compile(_finish, dynamic=True)


@lru_cache(maxsize=8)
def _flash(device: torch.device, dtype: torch.dtype) -> Callable[..., torch.Tensor] | None:
    """Return FlashAttention over segments of any length, if this device has it for this dtype."""
    if device.type != "cuda":
        return None
    if dtype not in (torch.bfloat16, torch.float16) or torch.cuda.get_device_capability(device) < FLASH_CAPABILITY:
        _log.warning(
            "no FlashAttention for %s on this GPU: attention runs a sequence at a time, which is slower", dtype
        )
        return None
    return _flash_package if find_spec("flash_attn") else _flash_of_torch


def _flash_package(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments, scale: float
) -> torch.Tensor:
    from flash_attn import flash_attn_varlen_func

    return flash_attn_varlen_func(
        query, key, value, segments.starts, segments.key_starts, max(segments.lengths), max(segments.reach),
        softmax_scale=scale, causal=True,
    )  # fmt: skip


def _flash_of_torch(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments, scale: float
) -> torch.Tensor:
    # The kernel under `torch.nn.attention.varlen`, whose own arguments differ from one release to the next.
    return torch.ops.aten._flash_attention_forward(
        query, key, value, segments.starts, segments.key_starts, max(segments.lengths), max(segments.reach),
        0.0, True, False, scale=scale,
    )[0]  # fmt: skip
