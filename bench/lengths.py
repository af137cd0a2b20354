"""Replies of an exact length, for measurements: a reply has as many tokens as it may have, and latents if it may."""

from __future__ import annotations

import torch

from vsr1.engine.engine import PolicyEngine
from vsr1.engine.latents import LatentLogitsProcessor


class ExactLengths(LatentLogitsProcessor):
    """Bars the end token and the refine token until a reply is at its limit; there comes the refine token, if any."""

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        for row, (request, output) in self.requests.items():
            left = request.text_limit - len(output)
            if left == 1 and request.depth:
                logits[row] = float("-inf")
                logits[row, self.reader.refine_token] = 0.0
            elif left > 0:
                logits[row, [self.reader.end_token, self.reader.refine_token]] = float("-inf")
        return super().apply(logits)


class ExactEngine(PolicyEngine):
    """A policy's engine whose replies are exactly `max_tokens` long."""

    logits_processor = f"{__name__}:ExactLengths"
