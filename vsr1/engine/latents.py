"""Latent decoding inside a request: handle tokens stand for latents between two decode steps.

Six tokens of a request with three latents in slot s. Cell k is row s * MAX_DEPTH + k of the latent table, and the
handle h(k) = first_handle + s * MAX_DEPTH + k stands for what lies in it:

    token      came by    is embedded as             what its state yields
    0 not      sampling   its row of the word table  the logits of token 1
    1 there    sampling   its row of the word table  the logits of token 2
    2 <REFINE> sampling   its row of the word table  before the final norm: latent 1, into cell 0; forces h(0)
    3 h(0)     force      the projection of latent 1 after the final norm: latent 2, into cell 1; forces h(1)
    4 h(1)     force      the projection of latent 2 after the final norm: latent 3, into cell 2; forces the end
    5 <end>    force      nothing, vLLM stops here   nothing

So n latents take n - 1 handles: the last one is read from the table and never fed back. The reply is tokens 0 to 2. A
text that comes to its limit, or to a refine token after which the request wants no latents, is followed by the end
token alone. A handle names its cell for good, so a replay after pre-emption feeds the same embeddings. The caller of
the engine owns the slots: one request at a time writes to one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoTokenizer
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, process_dict_updates

from vsr1.engine.latent_table import MAX_DEPTH, LatentTable, latent_noise
from vsr1.engine.request import LatentRequest, ReplyReader
from vsr1.model.upload import upload

if TYPE_CHECKING:
    from vllm.config import VllmConfig


class LatentLogitsProcessor(LogitsProcessor):
    """Drives the handle protocol for the requests that carry a `LatentRequest`.

    `requests` holds, by row of the batch, each such request and vLLM's own list of its tokens, which vLLM keeps up to
    date.
    """

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self.requests: dict[int, tuple[LatentRequest, list[int]]] = {}
        self.reader = ReplyReader(AutoTokenizer.from_pretrained(vllm_config.model_config.tokenizer))

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self.requests, batch_update, _latent_request)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Compute the latents that are due, and force what follows: logits [rows, vocabulary with handles]."""
        table = LatentTable.current
        if table is None or not self.requests:
            return logits
        first: list[tuple[int, LatentRequest, int]] = []  # row, request, step of the latent
        later: list[tuple[int, LatentRequest, int]] = []
        forced: dict[int, int] = {}
        for row, (request, output) in self.requests.items():
            last = output[-1] if output else -1
            if last == self.reader.end_token:  # the step that vLLM had begun before it saw the end
                continue
            is_over = len(output) >= request.text_limit or (request.depth > 0 and last == self.reader.refine_token)
            step: int | None = None
            if last >= table.first_handle:
                step = (last - table.first_handle) % MAX_DEPTH + 1
            elif is_over and self.reader.read(output, request)[2] == "refined":
                step = 0
            if step is not None:
                (later if step else first).append((row, request, step))
                handle = table.first_handle + request.slot * MAX_DEPTH + step
                forced[row] = handle if step + 1 < request.depth else self.reader.end_token
            elif is_over:
                forced[row] = self.reader.end_token
        for due, states in ((first, table.before_norm), (later, table.after_norm)):
            if due:
                if states is None or len(states) != len(logits):
                    raise RuntimeError(f"latent states cover {states and len(states)} rows, logits {len(logits)}")
                rows, cells = upload([(row, one.slot * MAX_DEPTH + step) for row, one, step in due], logits.device).T
                table.write(rows, cells, states, _noise(due, table.latents.shape[1]))
        if forced:
            rows, tokens = upload(list(forced.items()), logits.device).T
            logits[rows] = float("-inf")
            logits[rows, tokens] = 0.0
        return logits


def _latent_request(params: Any, _prompt: Any, output: list[int]) -> tuple[LatentRequest, list[int]] | None:
    request = LatentRequest.of(params.extra_args)
    return None if request is None else (request, output)


def _noise(due: list[tuple[int, LatentRequest, int]], size: int) -> torch.Tensor | None:
    if not any(request.sigma for _, request, _ in due):
        return None
    return torch.stack([request.sigma * latent_noise(request.seed, step, size) for _, request, step in due])
