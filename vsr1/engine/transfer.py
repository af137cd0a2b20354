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
from safetensors.torch import load_file, save_file
from torch.multiprocessing.reductions import reduce_tensor
from vllm.distributed.weight_transfer.nccl_common import stateless_init_process_group
from vllm.distributed.weight_transfer.packed_tensor import (
    packed_nccl_broadcast_consumer,
    packed_nccl_broadcast_producer,
)

from vsr1.model.manifest import Manifest, TensorRecord, fingerprint, probe

BUCKET_BYTES, BUCKETS = 256 * 2**20, 2
Layout = list[tuple[str, tuple[int, ...], str]]  # checkpoint key, shape and dtype of each tensor, in the order sent

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
    """Pickle CUDA IPC handles of tensors; keep these alive until the worker on the same GPU has loaded them."""
    return pickle.dumps([(name, reduce_tensor(tensor.detach())) for name, tensor in weights])


class WeightReceiver:
    """The worker's end, mixed into vLLM's worker."""

    model_runner: Any  # vLLM's
    _transfer_group: Any = None

    def join_transfer(self, host: str, port: int, rank: int, world_size: int) -> None:
        device = torch.cuda.current_device()
        self._transfer_group = stateless_init_process_group(host, port, rank, world_size, device)

    def receive_weights(self, way: str, weights: Any) -> None:
        """Load tensors, as their sender sends them.

        Args:
            way: `file`: `weights` are paths of safetensors files in checkpoint format; `ipc`: the handles that `share`
                made; `nccl`: the layout of the broadcast that begins now.
        """
        match way:
            case "file":
                self._load(chain.from_iterable(load_file(path).items() for path in weights))
            case "ipc":  # pickled, because vLLM's own encoding knows no handles; they come from the learner of this job
                self._load((name, rebuild(*args)) for name, (rebuild, args) in pickle.loads(weights))
            case "nccl":
                self._receive_broadcast(weights)
            case _:
                raise ValueError(f"weights cannot come by {way!r}; the ways are file, ipc and nccl")
        if self.model_runner.device.type == "cuda":
            torch.cuda.synchronize()

    def weight_faults(self, manifest: bytes) -> list[str]:
        """Return the keys of a pickled manifest whose tensors did not arrive, each with what is here instead."""
        expected: Manifest = pickle.loads(manifest)
        model = self.model_runner.model
        modules = dict(model.named_modules(remove_duplicate=False))  # a tied head may be the table itself
        faults = []
        for name in expected:
            for module, parameter, rows in _places(model, name, expected):
                fault = _fault(modules.get(module), parameter, rows, expected[name])
                if fault:
                    faults.append(f"{name}: {fault}")
        return faults

    def write_weights(self, manifest: bytes, path: str) -> None:
        """Write the tensors of a pickled manifest, as they are here, for another engine; on a GPU, which packs none."""
        expected: Manifest = pickle.loads(manifest)
        model = self.model_runner.model
        modules = dict(model.named_modules(remove_duplicate=False))
        tensors = {}
        for name, record in expected.items():
            module, parameter, rows = next(_places(model, name, expected))
            piece = getattr(modules[module], parameter)[rows]
            tensors[name] = piece.detach().to("cpu", getattr(torch, record.dtype)).contiguous()
        save_file(tensors, path)

    def _receive_broadcast(self, layout: Layout) -> None:
        if self._transfer_group is None:
            raise RuntimeError("this worker has not joined the weight transfer; call join_transfer first")
        packed_nccl_broadcast_consumer(
            iterator=((name, (list(shape), getattr(torch, dtype))) for name, shape, dtype in layout),
            group=self._transfer_group,
            src=0,
            post_unpack_func=self.model_runner.model.load_weights,
            buffer_size_bytes=BUCKET_BYTES,
            num_buffers=BUCKETS,
            device=torch.device("cuda", torch.cuda.current_device()),
        )

    def _load(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        if self.model_runner.device.type == "cuda":
            self.model_runner.model.load_weights(weights)
            return
        self.model_runner.reload_weights(weights_iterator=weights, is_checkpoint_format=True)
        head = self.model_runner.model.language_model.lm_head  # the reload leaves out its packed copy where it is tied
        head.quant_method.process_weights_after_loading(head)


def _places(model: Any, name: str, manifest: Manifest) -> Iterator[tuple[str, str, slice]]:
    """Yield where the engine keeps a checkpoint tensor: module, parameter, and rows of it."""
    [target] = model.hf_to_vllm_mapper.apply_list([name])
    module, parameter = target.rsplit(".", 1)
    parent, _, leaf = module.rpartition(".")
    start = 0
    for fused, parts in model.packed_modules_mapping.items():
        if leaf in parts:
            before = parts[: parts.index(leaf)]
            start = sum(manifest[name.replace(f".{leaf}.", f".{part}.")].shape[0] for part in before)
            module = f"{parent}.{fused}"
    rows = slice(start, start + manifest[name].shape[0])
    yield module, parameter, rows
    if leaf == "embed_tokens" and "lm_head.weight" not in manifest:  # tied: the head has a packed copy of its own
        yield "language_model.lm_head", parameter, rows


def _fault(module: Any, parameter: str, rows: slice, expected: TensorRecord) -> str | None:
    tensor = getattr(module, parameter, None)
    product = expected.product if hasattr(module, "cpu_linear") else None
    if product is not None:
        vector = probe(expected.shape[1]).to(getattr(torch, expected.dtype))
        here = module.quant_method.apply(module, vector[None])[0, rows].float()
        gap = (here - product).abs().max() / product.abs().max().clamp(min=1e-12)
        if gap > _PACKED_TOLERANCE:
            return f"its packed copy multiplies differently, by {float(gap):.1e}"
        if tensor is None or tensor.numel() == 0:  # vLLM keeps the packed copy only
            return None
    if tensor is None:
        return "the engine has no such parameter"
    piece = tensor[rows]
    if tuple(piece.shape) != expected.shape:
        return f"shape {tuple(piece.shape)}, sent {expected.shape}"
    same = (
        fingerprint(piece.to(getattr(torch, expected.dtype))) == expected.fingerprint
    )  # the engine's heads are float32
    return None if same else "other values than were sent"
