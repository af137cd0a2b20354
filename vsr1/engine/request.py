"""What a request tells the latents' logits processor, and which of vLLM's tokens are the policy's reply.

The engine's process decides while it decodes, the caller's process once it has all tokens: both ask a `ReplyReader`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from vsr1.episode.trajectory import FinishReason
from vsr1.model.checkpoint import refine_token_id

_KEY = "vsr1"  # of `extra_args` of vLLM's sampling parameters


@dataclass(frozen=True)
class LatentRequest:
    """One request, as it travels in vLLM's sampling parameters.

    Raises:
        re.error: `latents_unless` is no regular expression.
    """

    slot: int  # of the latent table; -1 where `depth` is 0
    depth: int  # latents after the refine token; with 0 that token is a word like any other
    latents_unless: str | None  # a regular expression; a text in which it is found gets no latents
    text_limit: int  # most tokens of the text, the refine token included
    seed: int
    sigma: float  # standard deviation of the noise on each latent

    def __post_init__(self) -> None:
        re.compile(self.latents_unless or "")

    def extra_args(self) -> dict[str, Any]:
        """Return what goes into vLLM's sampling parameters."""
        return {_KEY: asdict(self)}

    @classmethod
    def of(cls, extra_args: dict[str, Any] | None) -> LatentRequest | None:
        """Read it back; None where the request is not one of ours."""
        values = (extra_args or {}).get(_KEY)
        return None if values is None else cls(**values)


class ReplyReader:
    """Reads the tokens of a request, forced ones included, with the policy's tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self.refine_token, self.end_token = refine_token_id(tokenizer), int(tokenizer.eos_token_id)
        self._decode = partial(tokenizer.decode, skip_special_tokens=False)

    def sampled(self, ids: Sequence[int], request: LatentRequest) -> tuple[list[int], str]:
        """Return the tokens that were sampled and their text: up to the limit, and up to the refine token."""
        sampled = list(ids[: request.text_limit])
        if request.depth and self.refine_token in sampled:
            del sampled[sampled.index(self.refine_token) + 1 :]
        return sampled, self._decode(sampled)

    def read(self, ids: Sequence[int], request: LatentRequest) -> tuple[list[int], str, FinishReason]:
        """Return what `sampled` does, and how the reply ended; a `refined` one has latents, no other."""
        sampled, text = self.sampled(ids, request)
        if request.depth and sampled[-1:] == [self.refine_token]:
            is_plain = request.latents_unless is not None and re.search(request.latents_unless, text)
            return sampled, text, "stop" if is_plain else "refined"
        return sampled, text, "length" if len(ids) > request.text_limit else "stop"
