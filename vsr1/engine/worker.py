"""Calls into the worker process that vLLM does not have: latents out, weights in."""

from __future__ import annotations

from itertools import accumulate

import torch

from vsr1.engine.latent_table import MAX_DEPTH, LatentTable
from vsr1.engine.transfer import WeightReceiver


class LatentWorkerExtension(WeightReceiver):
    """Mixed into vLLM's worker by `worker_extension_cls`."""

    def take_latents(self, requests: list[tuple[int, int]]) -> list[tuple[bytes, bytes]]:
        """Return the latents [depth, R] of finished requests and their soft tokens [depth, E], as raw float32.

        Args:
            requests: slot and depth of each.
        """
        table = LatentTable.current
        if table is None:
            raise RuntimeError("this worker holds no latent table; the engine runs another model class")
        latents = table.latents[[slot * MAX_DEPTH + step for slot, depth in requests for step in range(depth)]]
        with torch.no_grad():
            soft = table.heads["refine_append_input_projector"](latents).float().cpu().numpy()
        values, ends = latents.cpu().numpy(), list(accumulate(depth for _, depth in requests))
        pieces = [slice(end - depth, end) for end, (_, depth) in zip(ends, requests, strict=True)]
        return [(values[piece].tobytes(), soft[piece].tobytes()) for piece in pieces]
