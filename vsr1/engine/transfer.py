"""Weights on their way from the learner into a worker: packed NCCL broadcasts or CUDA IPC on GPUs, a file on CPU.

On GPU the tensors go straight into vLLM's own storage, so CUDA graphs stay valid; on CPU vLLM repacks matrices, so its
reload path takes them.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import torch
from safetensors.torch import load_file
from torch.multiprocessing.reductions import reduce_tensor
from vllm.distributed.weight_transfer.nccl_common import stateless_init_process_group
from vllm.distributed.weight_transfer.packed_tensor import (
    packed_nccl_broadcast_consumer,
    packed_nccl_broadcast_producer,
)

from vsr1.model.manifest import Manifest, TensorRecord, fingerprint, probe

BUCKET_BYTES, BUCKETS = 256 * 2**20, 2
Layout = list[tuple[str, tuple[int, ...], str]]  # checkpoint key, shape and dtype of each tensor, in the order sent

# Checkpoint name to module of the engine; the first that fits.
_PREFIXES = (
    ("model.language_model.", "language_model.model."),
    ("model.visual.", "visual."),
    ("lm_head.", "language_model.lm_head."),
)
_FUSED = {
    "q_proj": ("qkv_proj", ("q_proj", "k_proj", "v_proj")),
    "k_proj": ("qkv_proj", ("q_proj", "k_proj", "v_proj")),
    "v_proj": ("qkv_proj", ("q_proj", "k_proj", "v_proj")),
    "gate_proj": ("gate_up_proj", ("gate_proj", "up_proj")),
    "up_proj": ("gate_up_proj", ("gate_proj", "up_proj")),
}
_PACKED_TOLERANCE = 1e-5  # of a matrix-vector product in float32, relative to its largest entry


class WeightSender:
    """The learner's end of the NCCL group, rank 0; workers join with `join_transfer` at the same time."""

    def __init__(self, host: str, port: int, world_size: int) -> None:
        device = torch.cuda.current_device()
        self._group = stateless_init_process_group(host, port, 0, world_size, device)

    def send(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Broadcast in buckets; returns when the last one has left."""
        packed_nccl_broadcast_producer(
            iterator=iter(weights),
            group=self._group,
            src=0,
            post_iter_func=lambda item: item[1],
            buffer_size_bytes=BUCKET_BYTES,
            num_buffers=BUCKETS,
        )
        torch.cuda.synchronize()


def share(weights: Iterable[tuple[str, torch.Tensor]]) -> bytes:
    """Pickled CUDA IPC handles of tensors; keep these alive until the worker on the same GPU has loaded them."""
    return pickle.dumps([(name, reduce_tensor(tensor.detach())) for name, tensor in weights])


class WeightReceiver:
    """The worker's end: one for each worker process."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self._group: Any = None

    def join(self, host: str, port: int, rank: int, world_size: int) -> None:
        device = torch.cuda.current_device()
        self._group = stateless_init_process_group(host, port, rank, world_size, device)

    def receive_nccl(self, layout: Layout) -> None:
        if self._group is None:
            raise RuntimeError("this worker has not joined the weight transfer; call join_transfer first")
        packed_nccl_broadcast_consumer(
            iterator=((name, (list(shape), getattr(torch, dtype))) for name, shape, dtype in layout),
            group=self._group,
            src=0,
            post_unpack_func=self._runner.model.load_weights,
            buffer_size_bytes=BUCKET_BYTES,
            num_buffers=BUCKETS,
            device=torch.device("cuda", torch.cuda.current_device()),
        )
        torch.cuda.synchronize()

    def receive_ipc(self, handles: list[tuple[str, Any]]) -> None:
        self._runner.model.load_weights((name, rebuild(*args)) for name, (rebuild, args) in handles)
        torch.cuda.synchronize()

    def receive_file(self, *paths: str) -> None:
        """Checkpoint-format safetensors, in one file or several.

        vLLM's reload leaves out the packed copy of an output head that shares the word table, so it is packed here.
        """
        weights = chain.from_iterable(load_file(path).items() for path in paths)
        if self._runner.device.type == "cuda":
            self._runner.model.load_weights(weights)
            torch.cuda.synchronize()
            return
        self._runner.reload_weights(weights_iterator=weights, is_checkpoint_format=True)
        head = self._runner.model.language_model.lm_head
        head.quant_method.process_weights_after_loading(head)

    def faults(self, manifest: Manifest) -> list[str]:
        """Keys whose tensors in the engine are not those of the manifest, each with the reason."""
        modules = dict(self._runner.model.named_modules(remove_duplicate=False))  # a tied head may be the table itself
        faults = []
        for name, wanted in manifest.items():
            for module, parameter, rows in _places(name, manifest, modules):
                fault = _fault(modules.get(module), parameter, rows, wanted)
                if fault:
                    faults.append(f"{name}: {fault}")
        return faults


def _places(name: str, manifest: Manifest, modules: dict[str, Any]) -> Iterator[tuple[str, str, slice]]:
    """Where the engine keeps a checkpoint tensor: module, parameter, and rows of it."""
    target = next((new + name.removeprefix(old) for old, new in _PREFIXES if name.startswith(old)), name)
    module, parameter = target.rsplit(".", 1)
    parent, _, leaf = module.rpartition(".")
    start = 0
    if leaf in _FUSED and target.startswith("language_model."):
        fused, parts = _FUSED[leaf]
        for part in parts[: parts.index(leaf)]:
            start += manifest[name.replace(f".{leaf}.", f".{part}.")].shape[0]
        module = f"{parent}.{fused}"
    rows = slice(start, start + manifest[name].shape[0])
    yield module, parameter, rows
    if leaf == "embed_tokens" and "lm_head.weight" not in manifest:  # tied: the head has a packed copy of its own
        yield "language_model.lm_head", parameter, rows


def _fault(module: Any, parameter: str, rows: slice, wanted: TensorRecord) -> str | None:
    held = getattr(module, parameter, None)
    is_packed = hasattr(module, "cpu_linear") and wanted.product is not None
    if held is None and not is_packed:
        return "the engine has no such parameter"
    if is_packed and wanted.product is not None:
        vector = probe(wanted.shape[1]).to(getattr(torch, wanted.dtype))
        found = module.quant_method.apply(module, vector[None])[0, rows].float()
        gap = (found - wanted.product).abs().max() / wanted.product.abs().max().clamp(min=1e-12)
        if gap > _PACKED_TOLERANCE:
            return f"its packed copy multiplies differently, by {float(gap):.1e}"
    if held is None or held.numel() == 0:  # vLLM keeps the packed copy only
        return None
    piece = held[rows]
    if tuple(piece.shape) != wanted.shape:
        return f"shape {tuple(piece.shape)}, sent {wanted.shape}"
    same = fingerprint(piece.to(getattr(torch, wanted.dtype))) == wanted.fingerprint  # the engine's heads are float32
    return None if same else "other values than were sent"
