"""Gradient checkpointing that leaves keys and values alone: backward computes MLPs again instead of keeping them.

Hugging Face's own recomputes whole layers and turns the key-value cache off, but the latents run on the cache of the
prefill and send gradients into its keys and values. So attention stays as it is, and the MLPs, which hold most of a
layer's activations (three times the intermediate width and more, against one hidden width kept here), are recomputed.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute_mlps(layers: Iterable[nn.Module]) -> None:
    """Make the `mlp` of each layer keep its input only; same values, gradients and parameter names.

    Args:
        layers: text layers or vision blocks of a Qwen3-VL model, before or after DeepSpeed has taken it.
    """
    for layer in layers:
        mlp = layer.mlp
        mlp.forward = partial(checkpoint, mlp.forward, use_reentrant=False, preserve_rng_state=False)
