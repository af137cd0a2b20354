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
from functools import cache, cached_property, lru_cache, partial
from itertools import accumulate
from typing import Any, TypeVar

import numpy as np
import torch
import torch._dynamo.config
import torch._functorch.config
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb

from vsr1.model.upload import upload

Value = TypeVar("Value")
KeysValues = tuple[torch.Tensor, torch.Tensor]  # of one layer, [T, key heads, D] each
FLASH_CAPABILITY = (8, 0)  # of the GPUs that FlashAttention runs on
ALL = slice(None)
_log = logging.getLogger(__name__)


@cache
def _compiled(part: Callable[..., Any]) -> Callable[..., Any]:
    # A part serves trained and frozen layers, with and without gradient: each is a version of its own.
    torch._dynamo.config.recompile_limit = 32
    # What no product is needed for is computed again in backward: 50 instead of 75 KB a token and layer at 2B.
    torch._functorch.config.activation_memory_budget = 0.8
    return torch.compile(part, dynamic=True)


@dataclass(frozen=True)
class LayerOptions:
    """How layers are run, to the same result.

    `recompute` of the first layers keep their input only and are computed again in backward, or all (True);
    `compiled` fuses what lies between the matrix products (`torch.compile`), which ZeRO-3 does not stand.
    """

    recompute: bool | int = False
    compiled: bool = False

    def fused(self, part: Callable[..., Value]) -> Callable[..., Value]:
        """Return a part of a layer as it is run; the compiled one is made once, for all layers and shapes."""
        return _compiled(part) if self.compiled else part


DEFAULTS = LayerOptions()


@dataclass(frozen=True)
class _Read:
    """What some queries read in one call of the kernel: causally their own segments, or pieces of keys as a whole.

    `queries` and `keys` say which, int64, or all. They lie in runs, each of which reads its run of keys.
    """

    is_causal: bool
    queries: torch.Tensor | slice
    keys: torch.Tensor | slice
    query_starts: torch.Tensor  # int32 [runs + 1]
    key_starts: torch.Tensor
    longest: tuple[int, int]


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
        self._lengths, self._pieces, self._key_lengths, self._device = lengths, pieces, key_lengths, device
        self._reach = [sum(key_lengths[piece] for piece in own) for own in pieces]
        self._mask = lru_cache(maxsize=None)(self._new_mask)

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        earlier: KeysValues | None,
        scale: float,
    ) -> torch.Tensor:
        """Return what each token reads, [T, heads, D], in the dtype of `torch.autocast` where that is on.

        Args:
            query: [T, heads, D].
            key: of this pass, [T, key heads, D]; `value` alike.
            earlier: of the pass before, whose pieces come first.
        """
        if torch.is_autocast_enabled(query.device.type):
            half = torch.get_autocast_dtype(query.device.type)
            query, key, value = query.to(half), key.to(half), value.to(half)
            earlier = earlier and (earlier[0].to(half), earlier[1].to(half))
        if _has_flash(query.device, query.dtype):
            return _Merged.apply(query, key, value, *(earlier or (None, None)), self._reads, scale)
        keys, values = (
            (key, value) if earlier is None else (torch.cat(pair) for pair in zip(earlier, (key, value), strict=True))
        )
        parts = []
        of_pieces = keys.split(self._key_lengths), values.split(self._key_lengths)
        for own, pieces in zip(query.split(self._lengths), self._pieces, strict=True):
            read = (torch.cat([part[piece] for piece in pieces]) for part in of_pieces)
            own, key, value = (part.transpose(0, 1)[None] for part in (own, *read))
            mask = self._mask(own.shape[2], key.shape[2])
            part = functional.scaled_dot_product_attention(
                own, key, value, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=True
            )
            parts.append(part[0].transpose(0, 1))
        return torch.cat(parts)

    @cached_property
    def _reads(self) -> list[_Read]:
        """The calls of the kernel: one for the segments themselves, one more for each piece before the own one."""
        own = self._starts(self._lengths)
        reads = [_Read(True, ALL, ALL, own, own, (max(self._lengths),) * 2)]
        begins, key_begins = ([0, *accumulate(part)] for part in (self._lengths, self._key_lengths))
        sources = key_begins[-1] - begins[-1] or begins[-1]  # tokens of the pass before, or of this one
        for back in range(2, 1 + max(map(len, self._pieces))):
            runs: dict[int, list[np.ndarray]] = {}  # tokens that read a piece, by the piece
            for place, pieces in enumerate(self._pieces):
                if len(pieces) >= back:
                    runs.setdefault(pieces[-back], []).append(np.arange(begins[place], begins[place + 1]))
            keys = np.concatenate([np.arange(key_begins[piece], key_begins[piece + 1]) for piece in runs])
            counts = [sum(map(len, run)) for run in runs.values()]
            key_counts = [self._key_lengths[piece] for piece in runs]
            queries = np.concatenate([tokens for run in runs.values() for tokens in run])
            places = self._places(queries, begins[-1]), self._places(keys, sources)
            starts = self._starts(counts), self._starts(key_counts)
            reads.append(_Read(False, *places, *starts, (max(counts), max(key_counts))))
        return reads

    def _places(self, tokens: np.ndarray, count: int) -> torch.Tensor | slice:
        """Return an index of tokens among `count`, which copies none where it is of all in their order."""
        return ALL if np.array_equal(tokens, np.arange(count)) else upload(tokens, self._device)

    def _starts(self, counts: list[int]) -> torch.Tensor:
        return upload([0, *accumulate(counts)], self._device, torch.int32)

    def _new_mask(self, count: int, reach: int) -> torch.Tensor | None:
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
    project, mix, finish = options.fused(_project), options.fused(_gated), options.fused(_finish)
    again = len(text.layers) if options.recompute is True else int(options.recompute)
    kept = []
    for place, layer in enumerate(text.layers):
        arguments = layer, hidden, angles, segments, earlier[place] if earlier else None, project
        if place < again and torch.is_grad_enabled():
            # The last product stands apart: it need not be computed again.
            last = partial(_finish, gated=mix)
            hidden, *own = checkpoint(_layer, *arguments, last, use_reentrant=False, preserve_rng_state=False)
        else:
            hidden, *own = _layer(*arguments, finish)
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
    project: Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
    finish: Callable[..., torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run one layer; returns states, keys and values of these tokens."""
    query, key, value = project(layer, hidden, *angles)
    mixed = segments.attend(query, key, value, earlier, layer.self_attn.scaling)
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


def _gated(layer: torch.nn.Module, hidden: torch.Tensor, mixed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the states after attention, and what the layer's last product is of."""
    hidden = hidden + layer.self_attn.o_proj(mixed.flatten(1))
    normed, mlp = layer.post_attention_layernorm(hidden), layer.mlp
    return hidden, mlp.act_fn(mlp.gate_proj(normed)) * mlp.up_proj(normed)


def _finish(
    layer: torch.nn.Module,
    hidden: torch.Tensor,
    mixed: torch.Tensor,
    gated: Callable[..., tuple[torch.Tensor, torch.Tensor]] = _gated,
) -> torch.Tensor:
    hidden, product = gated(layer, hidden, mixed)
    return hidden + layer.mlp.down_proj(product)


class _Merged(torch.autograd.Function):
    """FlashAttention over several reads, joined by the sums of their exponentials; no key is copied for each reader.

    The kernel's own backward gives each read its gradients once it is told the joined result and sum (as in ring
    attention).
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        earlier_key: torch.Tensor | None,
        earlier_value: torch.Tensor | None,
        reads: list[_Read],
        scale: float,
    ) -> torch.Tensor:
        sources = _sources(key, value, earlier_key, earlier_value)
        result, sums = _flash_forward(query, key, value, reads[0], scale)
        for read in reads[1:]:
            at = read.queries
            keys, values = (source[read.keys] for source in sources)
            part, part_sums = _flash_forward(query[at], keys, values, read, scale)
            share = (part_sums - sums[:, at]).sigmoid().T[..., None]  # of what is read now in the whole
            result[at] = result[at].float().lerp(part.float(), share).to(result.dtype)
            sums[:, at] = torch.logaddexp(sums[:, at], part_sums)
        ctx.save_for_backward(query, key, value, earlier_key, earlier_value, result, sums)
        ctx.reads, ctx.scale = reads, scale
        return result

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, earlier_key, earlier_value, result, sums = ctx.saved_tensors
        gradient, reads = gradient.contiguous(), ctx.reads
        own = list(_flash_backward(gradient, query, key, value, result, sums, reads[0], ctx.scale))
        is_own, sources = earlier_key is None, _sources(key, value, earlier_key, earlier_value)
        targets = own[1:] if is_own else [torch.zeros_like(source) for source in sources]
        for read in reads[1:]:
            at = read.queries
            keys, values = (source[read.keys] for source in sources)
            joined = result[at], sums[:, at].contiguous()
            parts = _flash_backward(gradient[at], query[at], keys, values, *joined, read, ctx.scale)
            for target, part, place in zip((own[0], *targets), parts, (at, read.keys, read.keys), strict=True):
                target[place] += part
        return *own, *([None, None] if is_own else targets), None, None


def _sources(
    key: torch.Tensor, value: torch.Tensor, earlier_key: torch.Tensor | None, earlier_value: torch.Tensor | None
) -> KeysValues:
    """Return what the reads after the first one are of."""
    return (key, value) if earlier_key is None or earlier_value is None else (earlier_key, earlier_value)


def _flash_forward(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, read: _Read, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what queries read, and the logarithm of the sum of their exponentials, float32 [heads, queries].

    The kernel under `torch.nn.attention.varlen`, whose own arguments differ from one release to the next.
    """
    starts, longest = (read.query_starts, read.key_starts), read.longest
    result, sums, *_ = torch.ops.aten._flash_attention_forward(
        query, key, value, *starts, *longest, 0.0, read.is_causal, False, scale=scale
    )
    return result, sums


def _flash_backward(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    result: torch.Tensor,
    sums: torch.Tensor,
    read: _Read,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of queries, keys and values of one read."""
    state = torch.zeros(2, dtype=torch.uint64, device=query.device)  # of the dropout that there is not
    starts, longest = (read.query_starts, read.key_starts), read.longest
    return torch.ops.aten._flash_attention_backward(
        gradient, query, key, value, result, sums, *starts, *longest, 0.0, read.is_causal, state, state[:0],
        scale=scale,
    )  # fmt: skip


@lru_cache(maxsize=8)
def _has_flash(device: torch.device, dtype: torch.dtype) -> bool:
    """Tell whether PyTorch's own FlashAttention runs on this device in this dtype."""
    if device.type != "cuda":
        return False
    if dtype in (torch.bfloat16, torch.float16) and torch.cuda.get_device_capability(device) >= FLASH_CAPABILITY:
        return True
    _log.warning("no FlashAttention for %s on this GPU: attention runs a sequence at a time, which is slower", dtype)
    return False
