"""Replies of an exact length, for measurements: a reply has as many tokens as it may have, and latents if it may."""

from __future__ import annotations

import torch

from vsr1.engine.latents import LatentLogitsProcessor

EXACT_LENGTHS = f"{__name__}:ExactLengths"  # `rollout.engine.logits_processor` of an engine of such replies


class ExactLengths(LatentLogitsProcessor):
    """Bars the end token and the refine token until a reply is at its limit; there comes the refine token, if any."""

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        left = {row: request.text_limit - len(output) for row, (request, output) in self.requests.items()}
        last = [row for row, tokens in left.items() if tokens == 1 and self.requests[row][0].depth]
        short = [row for row, tokens in left.items() if tokens > 0 and row not in last]
        if short:
            logits[torch.tensor(short)[:, None], [self.reader.end_token, self.reader.refine_token]] = float("-inf")
        if last:
            logits[last] = float("-inf")
            logits[last, self.reader.refine_token] = 0.0
        return super().apply(logits)
