"""Replies of an exact length, for measurements: a reply has as many tokens as it may have, and latents if it may."""

from __future__ import annotations

import torch

from vsr1.engine.latents import LatentLogitsProcessor
from vsr1.model.upload import upload

EXACT_LENGTHS = f"{__name__}:ExactLengths"  # `rollout.engine.logits_processor` of an engine of such replies


class ExactLengths(LatentLogitsProcessor):
    """Bars the end token and the refine token until a reply is at its limit; there comes the refine token, if any."""

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        rows = upload(list(self.requests), logits.device, torch.int64)
        for token in (self.reader.end_token, self.reader.refine_token):
            logits[rows, token] = float("-inf")
        last = [row for row, (own, output) in self.requests.items() if own.depth and own.text_limit - len(output) == 1]
        if last:
            rows = upload(last, logits.device)
            logits[rows] = float("-inf")
            logits[rows, self.reader.refine_token] = 0.0
        return super().apply(logits)
