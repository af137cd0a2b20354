"""Where the latents of refining requests lie while vLLM decodes them, and the noise that is added to each.

Knows neither vLLM nor the policy's class.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from vsr1.model.upload import upload

MAX_DEPTH = 8  # latents in one slot


def latent_noise(seed: int, step: int, size: int) -> torch.Tensor:
    """Return the standard normal draw [size] that belongs to one latent of a request, the same on every device.

    Args:
        seed: of the request, below 2**60.
    """
    generator = torch.Generator().manual_seed(seed * MAX_DEPTH + step)
    return torch.randn(size, generator=generator)


class LatentTable:
    """Latents of all slots, and the sampled rows of the newest step.

    `latents` float32 [slots * MAX_DEPTH, R]; `inputs` [slots * MAX_DEPTH, H] are their projections into the policy.
    """

    current: LatentTable | None = None  # the table of this worker process

    def __init__(self, heads: Mapping[str, nn.Module], slots: int, first_handle: int, sizes: tuple[int, int]) -> None:
        hidden, latent = sizes
        self.heads = heads
        self.first_handle = first_handle
        self.latents = torch.zeros(slots * MAX_DEPTH, latent, dtype=torch.float32)
        self.inputs = torch.zeros(slots * MAX_DEPTH, hidden)
        self.before_norm: torch.Tensor | None = None  # [rows, H] of the newest step
        self.after_norm: torch.Tensor | None = None
        LatentTable.current = self

    def write(self, rows: torch.Tensor, cells: torch.Tensor, states: torch.Tensor, noise: torch.Tensor | None) -> None:
        """Compute and store latents; a GPU is not waited for.

        Args:
            rows: int64 [n], which of `states` yield a latent.
            cells: int64 [n], where each of these goes.
            states: [B, H], of all rows of the batch, on the device of `rows` and `cells`.
            noise: float32 [n, R] on the host, added to the latents.
        """
        latents = self.heads["refine_projector"](states[rows].float())
        if noise is not None:
            latents = latents + upload(noise, latents.device)
        self.latents[cells] = latents
        self.inputs[cells] = self.heads["refine_latent_input_projector"](latents).to(self.inputs.dtype)

    def embed(self, token_ids: torch.Tensor, embeds: torch.Tensor) -> torch.Tensor:
        """Replace the embeddings [T, H] of handle tokens among `token_ids` [T] by the projections of their latents."""
        cells = token_ids - self.first_handle
        return torch.where((cells >= 0)[:, None], self.inputs[cells.clamp(min=0)].to(embeds.dtype), embeds)
