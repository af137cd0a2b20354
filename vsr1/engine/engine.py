"""The rollout engine: vLLM's AsyncLLM with latents, stamped weights and the engine's own token ids and log-probs.

A request that may refine holds a latent slot from before it starts until its latents are out; without a free slot it
waits, and the slot is freed on every way out. Weights change only while no request runs, and every cache that depends
on them is emptied with the change. No request runs on weights that did not pass their check.
"""

from __future__ import annotations

import asyncio
import itertools
import pickle
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from inspect import isawaitable
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vsr1 import compat
from vsr1.batching import Batcher
from vsr1.engine.gate import Gate, PushError
from vsr1.engine.latent_table import MAX_DEPTH
from vsr1.engine.options import BYTES, engine_options, set_environment, video_inputs
from vsr1.engine.plugin import ENGINE_ARCHITECTURE, check_installed, register
from vsr1.engine.request import LatentRequest, ReplyReader
from vsr1.episode.environment import Prompt, PromptError
from vsr1.episode.trajectory import FinishReason
from vsr1.model.checkpoint import CheckpointError, policy_sizes
from vsr1.model.manifest import Manifest
from vsr1.model.processor import ClipProcessor
from vsr1.settings.parts import EngineConfig
from vsr1.video.clips import Clip

Way = Literal["file", "ipc", "nccl"]  # of weights into the engine's worker, see `WeightReceiver.receive_weights`
ATTEMPTS = 3  # at one request


@dataclass
class Reply:
    """One finished request. Token ids and log-probs are those of sampled tokens, the refine token included."""

    prompt_token_ids: list[int]
    token_ids: list[int]
    logprobs: list[float]
    text: str
    finish_reason: FinishReason
    latents: np.ndarray | None  # [depth, R] float32
    soft_tokens: np.ndarray | None  # [depth, E] float32, inputs of the embedder
    seed: int  # of the request: its latents are their means + sigma * `latent_noise(seed, step, R)`
    weight_version: int


class PolicyEngine:
    """Build it with `start`; call `shutdown` when done."""

    def __init__(self, llm: Any, processor: ClipProcessor, config: EngineConfig) -> None:
        self._llm = llm
        self.processor = processor
        self._reader = ReplyReader(processor.tokenizer)
        self._slots: asyncio.Queue[int] = asyncio.Queue()
        for slot in range(config.latent_slots):
            self._slots.put_nowait(slot)
        self._numbers = itertools.count()
        self._gate = Gate()
        self._latents: Batcher[LatentRequest, list[np.ndarray]] = Batcher(self._take, max_batch=config.latent_slots)
        self.weight_version = 0
        self.signs = 0  # of life: requests taken and tokens that came out

    @classmethod
    async def start(
        cls,
        folder: Path,
        config: EngineConfig,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        allow_bin: bool = False,
    ) -> PolicyEngine:
        """Load a policy checkpoint into a new engine process.

        Raises:
            CheckpointError: the folder is not a policy checkpoint, or is not made for sequences of `max_model_len`.
            RuntimeError: vsr1 is not installed here, but read from a folder of sources.
        """
        check_installed()
        sizes = policy_sizes(folder, allow_bin=allow_bin)
        if config.max_model_len > sizes.positions:
            raise CheckpointError(
                f"rollout.engine.max_model_len={config.max_model_len}, and the policy in {folder} was made for "
                f"sequences of {sizes.positions} tokens: lower it"
            )
        set_environment(config, device)
        register()
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        overrides = {
            "architectures": [ENGINE_ARCHITECTURE],
            "refine_dim": sizes.latent,
            "refine_embedder_dim": sizes.embedder,
            "first_handle": sizes.vocabulary,
            "latent_slots": config.latent_slots,
            "text_config": {"vocab_size": sizes.vocabulary + config.latent_slots * MAX_DEPTH},
        }
        args = AsyncEngineArgs(
            model=str(folder),
            hf_overrides=overrides,
            dtype=dtype,
            logits_processors=[config.logits_processor],
            worker_extension_cls="vsr1.engine.worker.LatentWorkerExtension",
            logprobs_mode="processed_logprobs",
            enable_log_requests=False,
            **engine_options(config, device) | {"mm_processor_kwargs": BYTES},
        )
        with compat.prepared_children():  # no name here for vLLM's engine: what it imports keeps this frame for ever
            engine = cls(AsyncLLM.from_engine_args(args), ClipProcessor(folder), config)
        outputs = engine._llm.output_processor
        process = outputs.process_outputs

        def counted(*args: Any, **kwargs: Any) -> Any:
            engine.signs += 1
            return process(*args, **kwargs)

        outputs.process_outputs = counted  # else a token is only seen at the end of its reply
        await engine.warm_up()
        return engine

    async def generate(
        self,
        prompt: Prompt,
        *,
        max_tokens: int,
        latents: int,
        temperature: float,
        seed: int,
        sigma: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        on_text: Callable[[str], None] | None = None,
    ) -> Reply:
        """Sample one reply, with latents if it ends in the refine token.

        Args:
            prompt: texts in chat markup, clips and tokens; it also says which replies get no latents.
            max_tokens: most sampled tokens, the refine token included.
            latents: latents after the refine token, up to 8; with 0 that token is a word like any other.
            temperature: 0 decodes greedily.
            seed: of this request's sampling, of tokens and of noise; below 2**60.
            sigma: standard deviation of the noise that is added to each latent.
            top_p, top_k: sample from the likeliest tokens of this sum, or so many; the log-probs are those of the cut.
            on_text: gets the reply's text piece by piece while it is sampled; the pieces together are the text.

        Raises:
            PromptError: the prompt is longer than `rollout.engine.max_model_len`, has more clips than
                `rollout.engine.videos_per_prompt`, or a video placeholder that is no clip's.
            MixedWeightsError: the last push of weights failed.
        """
        from vllm import SamplingParams
        from vllm.exceptions import VLLMValidationError
        from vllm.sampling_params import RequestOutputKind

        ids = prompt.token_ids(self.processor.encode, self.processor.video_token)
        places = ids.count(self.processor.video_token)
        if places != len(prompt.clips):
            raise PromptError(f"the prompt has {places} video placeholders for {len(prompt.clips)} clips")
        slot = await self._slots.get() if latents else -1
        try:
            async with self._gate.enter():
                latent_request = LatentRequest(slot, latents, prompt.latents_unless, max_tokens, seed, sigma)
                params = SamplingParams(
                    temperature=temperature,
                    top_p=top_p,
                    top_k=top_k,
                    seed=seed,
                    max_tokens=max_tokens + latents + 1,  # the end token after a limit is forced
                    logprobs=0,
                    stop_token_ids=[self._reader.end_token],
                    detokenize=False,
                    output_kind=RequestOutputKind.CUMULATIVE if on_text else RequestOutputKind.FINAL_ONLY,
                    extra_args=latent_request.extra_args(),
                )
                request = {"prompt_token_ids": ids} | video_inputs(prompt.clips)
                final, written = await self._finished(request, params, latent_request, on_text)
                reply = await self._reply(final, latent_request)
                if on_text and len(reply.text) > len(written):
                    on_text(reply.text[len(written) :])
                return reply
        except VLLMValidationError as error:
            raise PromptError(str(error)) from error
        finally:  # without an await, so that a second cancellation cannot keep the slot
            if latents:
                self._slots.put_nowait(slot)

    async def _finished(
        self, request: dict[str, Any], params: Any, latents: LatentRequest, on_text: Callable[[str], None] | None
    ) -> tuple[Any, str]:
        """Return vLLM's last output of a request, and the text that `on_text` has got.

        A request that is cancelled before it leaves for the engine process makes vLLM believe that its clip is there;
        the next one with that clip ends in an error without a token. By then vLLM knows better and takes it again.

        Raises:
            RuntimeError: vLLM ended the request, and not because the reply was over.
        """
        self.signs += 1
        for _ in range(ATTEMPTS):
            request_id, written = f"r{next(self._numbers)}", ""
            final: Any = None
            async for output in self._llm.generate(request, params, request_id):
                final = output
                if on_text:
                    _, text = self._reader.sampled(output.outputs[0].token_ids, latents)
                    if len(text) > len(written) and not text.endswith("\N{REPLACEMENT CHARACTER}"):
                        on_text(text[len(written) :])  # half a character comes later
                        written = text
            if final is None:
                raise RuntimeError(f"the engine ended request {request_id} without an answer")
            reply = final.outputs[0]
            if reply.finish_reason in ("stop", "length"):
                return final, written
            if reply.finish_reason != "error" or reply.token_ids:
                break
        raise RuntimeError(f"the engine ended request {request_id} without an answer: {reply.finish_reason}")

    async def push_weights(
        self, way: Way, weights: Any, version: int, manifest: Manifest | Awaitable[Manifest] | None = None
    ) -> None:
        """Take new weights once no request runs, empty every cache that depends on them, and check them.

        Args:
            way: how the sender sends them.
            weights: what `WeightReceiver.receive_weights` takes in this way.
            version: stamped on every reply from now on.
            manifest: what must have arrived, now or when the sender knows it; None leaves that unchecked.

        Raises:
            PushError: a tensor of the manifest is not in the engine, or vLLM kept a cache. After any error the engine
                holds a mixture: it stays shut, until a later push of all weights succeeds.
        """
        async with self._gate.shut():
            await self._llm.collective_rpc("receive_weights", args=(way, weights))
            await self.reset_caches()
            if manifest is not None:
                await self.check_weights(await manifest if isawaitable(manifest) else manifest)
            self.weight_version = version

    async def check_weights(self, manifest: Manifest) -> None:
        """Compare what the engine holds with a manifest.

        Raises:
            PushError: names every tensor that differs.
        """
        [faults] = await self._llm.collective_rpc("weight_faults", args=(pickle.dumps(manifest),))
        if faults:
            raise PushError(f"{len(faults)} of {len(manifest)} tensors did not arrive: " + "; ".join(faults))

    async def write_weights(self, path: Path, manifest: Manifest) -> None:
        """Write the tensors of a manifest to a safetensors file while no push changes them."""
        async with self._gate.enter():
            await self._llm.collective_rpc("write_weights", args=(pickle.dumps(manifest), str(path)))

    async def reset_caches(self) -> None:
        """Forget prompts, processed clips and vision features; no request may run.

        Raises:
            PushError: vLLM kept a cache.
        """
        await self._llm.reset_mm_cache()
        await self._llm.reset_encoder_cache()
        if not await self._llm.reset_prefix_cache():
            raise PushError("vLLM kept its prefix cache although no request runs; the push is not complete")

    async def join_transfer(self, host: str, port: int, rank: int, world_size: int) -> None:
        """Join the learner's NCCL group; the learner makes its `WeightSender` at the same time."""
        await self._llm.collective_rpc("join_transfer", args=(host, port, rank, world_size))

    async def check_health(self) -> None:
        """Raise vLLM's own error when the engine process is gone."""
        await self._llm.check_health()

    @property
    def is_idle(self) -> bool:
        """Tell whether no request is inside."""
        return self._gate.inside == 0

    @property
    def is_dead(self) -> bool:
        """Tell whether the engine process is gone."""
        return self._llm is None or bool(self._llm.errored)

    def outlived(self) -> None:
        """Return when the engine process has ended, however that came about; for a thread of its own."""
        processes = self._llm.engine_core.resources.engine_manager.processes  # held here: they close their sentinels
        wait([process.sentinel for process in processes])

    async def one_token(self) -> None:
        """Let the engine generate one token; errors as vLLM's own."""
        await self.generate(Prompt(["a"]), max_tokens=1, latents=0, temperature=0.0, seed=0)

    async def warm_up(self) -> None:
        """Answer twice about a clip and forget it: a GPU compiles kernels for seconds when they are first used."""
        clip = Clip.make("warm-up", np.zeros((2, 64, 64, 3), np.uint8), np.arange(2.0))
        await asyncio.gather(
            *(self.generate(Prompt(["a", clip, "a"]), max_tokens=4, latents=1, temperature=1.0, seed=n) for n in (0, 1))
        )
        await self.reset_caches()

    def shutdown(self) -> None:
        self._llm.shutdown()
        self._llm = None

    async def _reply(self, output: Any, request: LatentRequest) -> Reply:
        completion = output.outputs[0]
        ids, text, reason = self._reader.read(completion.token_ids, request)
        logprobs = [step[token].logprob for token, step in zip(ids, completion.logprobs, strict=False)]
        latents = soft = None
        if reason == "refined":
            latents, soft = await self._latents.submit(request)
        seed, version = request.seed, self.weight_version
        return Reply(list(output.prompt_token_ids), ids, logprobs, text, reason, latents, soft, seed, version)

    async def _take(self, requests: list[LatentRequest]) -> list[list[np.ndarray] | BaseException]:
        """Return latents and soft tokens of requests that ended at one time, in one call for all."""
        wanted = [(request.slot, request.depth) for request in requests]
        [raw] = await self._llm.collective_rpc("take_latents", args=(wanted,))
        return [
            [np.frombuffer(values, np.float32).reshape(request.depth, -1) for values in pair]
            for request, pair in zip(requests, raw, strict=True)
        ]
