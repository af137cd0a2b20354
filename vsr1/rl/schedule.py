"""How a training cuts its batches into optimiser steps, and which learning rate each has."""

from __future__ import annotations

import math
import random
from itertools import pairwise
from typing import TypeVar

from vsr1.settings.training import LearnerConfig

Row = TypeVar("Row")
SUMS = ("tokens", "example_bytes", "learner/clips_encoded")  # over the optimiser steps on one batch


def optimiser_batches(rows: list[Row], minibatches: int, epochs: int, ranks: int, seed: int) -> list[list[Row]]:
    """Return the rows of each optimiser step on one batch, `epochs` times over all rows, each time in another order.

    Seven rows in two mini-batches: [r3 r0 r6 r2] [r5 r1 r4]. With one step all rows are in their order.

    Args:
        minibatches: steps an epoch; fewer where a part would have less than one row for each of the `ranks`.
    """
    count = max(1, min(minibatches, len(rows) // ranks))
    if count * epochs == 1:
        return [rows]
    order = random.Random(seed)
    steps = []
    for _ in range(epochs):
        mixed = order.sample(rows, len(rows))
        bounds = [round(part * len(rows) / count) for part in range(count + 1)]
        steps += [mixed[start:end] for start, end in pairwise(bounds)]
    return steps


def of_all_steps(steps: list[dict[str, float]]) -> dict[str, float]:
    """Return the numbers of the optimiser steps on one batch as one: means, the largest of `_max`, sums of counts."""
    values: dict[str, float] = {}
    for name in steps[0]:
        of_each = [step[name] for step in steps if name in step]
        if name.endswith(("_max", "peak_gib")):
            values[name] = max(of_each)
        else:
            is_sum = name in SUMS or name.startswith("seconds/")
            values[name] = sum(of_each) / (1 if is_sum else len(of_each))
    return values | {"optimiser_steps": float(len(steps))}


def of_all_batches(batches: list[dict[str, float]]) -> dict[str, float]:
    """Return the numbers of evaluated batches as those of one: means over the tokens of the replies, tokens summed.

    A number that a batch does not have, as the retrieval loss where no reply rejects, is a mean over the others.
    """
    values: dict[str, float] = {}
    for name in sorted({name for batch in batches for name in batch}):
        having = [batch for batch in batches if name in batch]
        tokens = sum(batch["tokens"] for batch in having)
        values[name] = tokens if name == "tokens" else sum(batch[name] * batch["tokens"] for batch in having) / tokens
    return values


def learning_rate(settings: LearnerConfig, step: int, progress: float) -> float:
    """Return the learning rate of the backbone in a step; the heads keep their ratio to it.

    It rises evenly over `warmup_steps`, and what the schedule says is a factor of its own.

    Args:
        step: from 1.
        progress: share of the training that is over, in 0..1.
    """
    factor = {
        "half_constant": annealed(progress),
        "constant": 1.0,
        "linear": 1 - progress,
        "cosine": (1 + math.cos(math.pi * progress)) / 2,
    }[settings.schedule]
    return settings.learning_rate * factor * min(1.0, step / max(1, settings.warmup_steps))


def annealed(done: float) -> float:
    """Return the factor of the learning rates: 1 in the first half of a training, then evenly down to 0.

    Args:
        done: share of the training that is over, in 0..1.
    """
    return min(1.0, 2 * (1 - done))
