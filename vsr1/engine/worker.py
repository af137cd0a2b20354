"""Calls into the worker process that vLLM does not have: latents out, weights in."""

from __future__ import annotations

import numpy as np
import torch
from safetensors.torch import load_file

from vsr1.engine.latents import MAX_DEPTH, LatentTable


class LatentWorkerExtension:
    """Mixed into vLLM's worker by `worker_extension_cls`."""

    def take_latents(self, slot: int, depth: int) -> tuple[int, bytes, bytes]:
        """Latents of a finished request as raw float32: (depth, [depth, R], soft tokens [depth, E])."""
        table = LatentTable.current
        if table is None:
            raise RuntimeError("this worker holds no latent table; the engine runs another model class")
        latents = table.latents[slot * MAX_DEPTH : slot * MAX_DEPTH + depth]
        with torch.no_grad():
            soft = table.model.refine_append_input_projector(latents)
        return depth, _raw(latents), _raw(soft)

    def reload_from_file(self, path: str) -> int:
        """Load checkpoint-format weights from a safetensors file; returns how many tensors it held.

        On CPU vLLM repacks weights after loading, so new ones must come in through its reload path; that leaves out the
        packed copy of an output head which shares the word table.
        """
        weights = load_file(path)
        runner = self.model_runner  # type: ignore[attr-defined]
        runner.reload_weights(weights_iterator=iter(weights.items()), is_checkpoint_format=True)
        head = runner.model.language_model.lm_head
        head.quant_method.process_weights_after_loading(head)
        return len(weights)


def _raw(tensor: torch.Tensor) -> bytes:
    return np.ascontiguousarray(tensor.float().cpu().numpy()).tobytes()
