"""Plain vLLM, as a user would take it: the stock model class, its default engine, no search, no latents, no seeds."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Sequence
from pathlib import Path

from vsr1 import compat
from vsr1.engine.options import engine_options, set_environment, video_inputs
from vsr1.model.checkpoint import ARCHITECTURE
from vsr1.settings.parts import EngineConfig
from vsr1.video.clips import Clip

compat.prepare()

import vllm  # noqa: E402  # what is compared with; the product knows it behind vsr1.engine only

PlainRequest = tuple[list[int], Clip]  # token ids with one placeholder for the clip


class PlainVllm:
    """One engine in a process of its own, with random weights of its own; use its coroutines in one event loop."""

    def __init__(self, folder: Path, config: EngineConfig, device: str, dtype: str) -> None:
        set_environment(config, device)
        os.environ["VLLM_USE_FLASHINFER_SAMPLER"] = "0"  # compiled for two minutes, for cuts that nobody asks for here
        if device == "cpu":  # the class itself: by name vLLM would inspect it in a process without `compat`
            from vllm.model_executor.models.qwen3_vl import Qwen3VLForConditionalGeneration

            vllm.ModelRegistry.register_model(ARCHITECTURE, Qwen3VLForConditionalGeneration)
        args = vllm.AsyncEngineArgs(
            model=str(folder), dtype=dtype, load_format="dummy", **engine_options(config, device)
        )
        with compat.prepared_children():
            self._llm = vllm.AsyncLLMEngine.from_engine_args(args)

    async def forget(self) -> None:
        """Empty the caches of prompts, clips and vision features."""
        await self._llm.reset_mm_cache()
        await self._llm.reset_encoder_cache()
        await self._llm.reset_prefix_cache()

    async def generate(self, requests: Sequence[PlainRequest], tokens: int) -> None:
        """Sample exactly so many tokens for each request, all at one time.

        Raises:
            RuntimeError: a reply has another length.
        """
        params = vllm.SamplingParams(
            temperature=1.0,
            max_tokens=tokens,
            ignore_eos=True,
            logprobs=0,
            detokenize=False,
            output_kind=vllm.sampling_params.RequestOutputKind.FINAL_ONLY,
        )
        lengths = await asyncio.gather(*(self._length(request, params) for request in requests))
        if set(lengths) != {tokens}:
            raise RuntimeError(f"plain vLLM gave replies of {sorted(set(lengths))} tokens, not {tokens}")

    async def _length(self, request: PlainRequest, params: vllm.SamplingParams) -> int:
        ids, clip = request
        count = 0
        async for output in self._llm.generate(
            {"prompt_token_ids": ids} | video_inputs([clip]), params, uuid.uuid4().hex
        ):
            count = len(output.outputs[0].token_ids)
        return count

    def shutdown(self) -> None:
        self._llm.shutdown()
