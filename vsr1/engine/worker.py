"""Calls into the worker process that vLLM does not have: latents out, weights in."""

from __future__ import annotations

import pickle
from functools import cached_property

import numpy as np
import torch

from vsr1.engine.latent_table import MAX_DEPTH, LatentTable
from vsr1.engine.transfer import Layout, WeightReceiver


class LatentWorkerExtension:
    """Mixed into vLLM's worker by `worker_extension_cls`."""

    @cached_property
    def _receiver(self) -> WeightReceiver:
        return WeightReceiver(self.model_runner)  # type: ignore[attr-defined]

    def take_latents(self, slot: int, depth: int) -> tuple[int, bytes, bytes]:
        """Latents of a finished request as raw float32: (depth, [depth, R], soft tokens [depth, E])."""
        table = LatentTable.current
        if table is None:
            raise RuntimeError("this worker holds no latent table; the engine runs another model class")
        latents = table.latents[slot * MAX_DEPTH : slot * MAX_DEPTH + depth]
        with torch.no_grad():
            soft = table.heads["refine_append_input_projector"](latents)
        return depth, _raw(latents), _raw(soft)

    def join_transfer(self, host: str, port: int, rank: int, world_size: int) -> None:
        self._receiver.join(host, port, rank, world_size)

    def receive_nccl(self, layout: Layout) -> None:
        self._receiver.receive_nccl(layout)

    def receive_ipc(self, handles: bytes) -> None:
        """Pickled, because vLLM's own encoding knows no handles; they come from the learner of this job."""
        self._receiver.receive_ipc(pickle.loads(handles))

    def receive_file(self, *paths: str) -> None:
        self._receiver.receive_file(*paths)

    def weight_faults(self, manifest: bytes) -> list[str]:
        """Keys of a pickled manifest that did not arrive, see `WeightReceiver.faults`."""
        return self._receiver.faults(pickle.loads(manifest))


def _raw(tensor: torch.Tensor) -> bytes:
    return np.ascontiguousarray(tensor.float().cpu().numpy()).tobytes()
