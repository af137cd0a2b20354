"""From the host to a device without a wait: a plain copy lets the host stand until all work queued there is done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


def upload(
    values: torch.Tensor | np.ndarray | Sequence[Any], device: torch.device, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Return values of the host as a tensor on `device`; work that is queued there later sees them whole.

    Args:
        dtype: of the result; None: as the values are.
    """
    on_gpu = device.type == "cuda"
    if isinstance(values, np.ndarray):  # of the host's memory that a GPU reads from, in one copy
        staged = torch.empty(values.shape, dtype=torch.from_numpy(values[:0].copy()).dtype, pin_memory=on_gpu)
        staged.numpy()[...] = values
        return staged.to(device, dtype, non_blocking=on_gpu)
    tensor = torch.as_tensor(values, dtype=dtype)
    return tensor.pin_memory().to(device, non_blocking=True) if on_gpu else tensor.to(device)
