"""Latent decoding inside a request: handle tokens stand for latents between two decode steps.

After the refine token the processor computes the first latent from the state before the final norm, stores it under the
request's slot and forces the handle token of (slot, step); after a handle it computes the next latent from the normed
state; after the last it forces the end token. A reply that accepts its video needs no refined query and ends at the
refine token. A handle names its latent for good, so a replay after pre-emption feeds the same embeddings. The caller of
the engine owns the slots: one request at a time writes to one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import AutoTokenizer
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from vsr1.engine.latent_table import MAX_DEPTH, LatentTable, latent_noise
from vsr1.search.parse import read_verdict

if TYPE_CHECKING:
    from vllm.config import VllmConfig

REQUEST_KEYS = ("slot", "depth", "text_limit", "refine_token", "end_token", "seed", "refine_at")


@dataclass
class _Request:
    slot: int
    depth: int
    text_limit: int
    refine_token: int
    end_token: int
    seed: int
    refine_at: int  # sampled tokens after which the refine token is forced; -1 leaves it to the policy
    sigma: float
    output: list[int]  # vLLM's own list of sampled tokens, kept up to date by vLLM


class LatentLogitsProcessor(LogitsProcessor):
    """Drives the handle protocol for requests whose `extra_args` hold `REQUEST_KEYS` and `sigma`."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self._requests: dict[int, _Request] = {}
        self._tokenizer = AutoTokenizer.from_pretrained(vllm_config.model_config.tokenizer)

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update is None:
            return
        for index in batch_update.removed:
            self._requests.pop(index, None)
        for index, params, _prompt, output in batch_update.added:
            self._requests.pop(index, None)
            if params.extra_args and "slot" in params.extra_args:
                values = {key: int(params.extra_args[key]) for key in REQUEST_KEYS}
                self._requests[index] = _Request(**values, sigma=float(params.extra_args["sigma"]), output=output)
        for source, target, direction in batch_update.moved:
            moved, replaced = self._requests.pop(source, None), self._requests.pop(target, None)
            if moved is not None:
                self._requests[target] = moved
            if direction is MoveDirectionality.SWAP and replaced is not None:
                self._requests[source] = replaced

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        table = LatentTable.current
        if table is None or not self._requests:
            return logits
        first: list[tuple[int, _Request, int]] = []  # row, request, step of the latent
        later: list[tuple[int, _Request, int]] = []
        forced: dict[int, int] = {}
        for row, request in self._requests.items():
            step = self._step(request, table.first_handle) if request.depth else None
            if step is None:
                if len(request.output) == request.refine_at:
                    forced[row] = request.refine_token
                elif len(request.output) >= request.text_limit:
                    forced[row] = request.end_token
                continue
            if step == 0 and request.refine_at < 0 and self._accepts(request):
                forced[row] = request.end_token
                continue
            (first if step == 0 else later).append((row, request, step))
            handle = table.first_handle + request.slot * MAX_DEPTH + step
            forced[row] = handle if step + 1 < request.depth else request.end_token
        for due, states in ((first, table.before_norm), (later, table.after_norm)):
            if due:
                if states is None or len(states) != len(logits):
                    raise RuntimeError(f"latent states cover {states and len(states)} rows, logits {len(logits)}")
                cells = [request.slot * MAX_DEPTH + step for _, request, step in due]
                table.write([row for row, _, _ in due], cells, states, _noise(due, table.latents.shape[1]))
        if forced:
            rows = list(forced)
            logits[rows] = float("-inf")
            logits[rows, list(forced.values())] = 0.0
        return logits

    def _accepts(self, request: _Request) -> bool:
        """Whether a reply, up to its refine token, says that the shown video is the right one."""
        return read_verdict(self._tokenizer.decode(request.output, skip_special_tokens=False)) == "matched"

    @staticmethod
    def _step(request: _Request, first_handle: int) -> int | None:
        """Which latent the newest row yields, None outside a refinement."""
        last = request.output[-1] if request.output else -1
        if last == request.refine_token and len(request.output) > request.refine_at:
            return 0
        if last >= first_handle:
            return (last - first_handle) % MAX_DEPTH + 1
        return None


def _noise(due: list[tuple[int, _Request, int]], size: int) -> torch.Tensor | None:
    if not any(request.sigma for _, request, _ in due):
        return None
    return torch.stack([request.sigma * latent_noise(request.seed, step, size) for _, request, step in due])
