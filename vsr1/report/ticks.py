"""Round tick positions for an axis."""

from __future__ import annotations

import math


def round_ticks(low: float, high: float, most: int = 5, whole: bool = False) -> list[tuple[float, str]]:
    """Return one to about `most` multiples of 1, 2 or 5 times a power of ten inside [low, high], with their labels.

    Args:
        whole: keep to whole numbers, for step counts.

    Raises:
        ValueError: the bounds are not finite or not in order.
    """
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise ValueError(f"round_ticks: bounds {low} and {high} must be finite and in order")
    raw = (high - low) / most
    if raw == 0:  # also where the bounds are nearer than floats can divide
        return [(low, f"{low:.6g}")]
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    if whole:
        step = max(1.0, step)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [(index * step, f"{index * step:.6g}") for index in range(first, last + 1)]
