"""Calls into the worker process that vLLM does not have: latents out, weights in."""

from __future__ import annotations

import torch

from vsr1.engine.latent_table import MAX_DEPTH, LatentTable
from vsr1.engine.transfer import WeightReceiver


class LatentWorkerExtension(WeightReceiver):
    """Mixed into vLLM's worker by `worker_extension_cls`."""

    def take_latents(self, slot: int, depth: int) -> tuple[bytes, bytes]:
        """Return the latents [depth, R] of a finished request and their soft tokens [depth, E], as raw float32."""
        table = LatentTable.current
        if table is None:
            raise RuntimeError("this worker holds no latent table; the engine runs another model class")
        latents = table.latents[slot * MAX_DEPTH : slot * MAX_DEPTH + depth]
        with torch.no_grad():
            soft = table.heads["refine_append_input_projector"](latents)
        return latents.cpu().numpy().tobytes(), soft.float().cpu().numpy().tobytes()
