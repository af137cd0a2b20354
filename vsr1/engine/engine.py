"""The rollout engine: vLLM's AsyncLLM with latents, stamped weights and the engine's own token ids and log-probs.

A request that will refine holds a latent slot from before it starts until its latents are out; without a free slot it
waits, and the slot is freed on every way out. Weights change only while no request runs, and every cache that depends
on them is emptied with the change.
"""

from __future__ import annotations

import asyncio
import itertools
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vsr1 import compat
from vsr1.engine.options import engine_options, set_environment
from vsr1.engine.plugin import ENGINE_ARCHITECTURE, register
from vsr1.episode.environment import PromptError
from vsr1.model.checkpoint import policy_sizes, refine_token_id
from vsr1.model.manifest import Manifest
from vsr1.model.processor import ClipProcessor, engine_metadata
from vsr1.search.parse import read_verdict
from vsr1.settings.parts import EngineConfig
from vsr1.video.clips import Clip

ATTEMPTS = 3  # at one request


class PushError(RuntimeError):
    """New weights that did not arrive whole; the message names every tensor."""


@dataclass
class Reply:
    """One finished request. Token ids and log-probs are those of sampled tokens, the refine token included."""

    prompt_token_ids: list[int]
    token_ids: list[int]
    logprobs: list[float]
    text: str
    finish_reason: str  # refined | stop | length
    latents: np.ndarray | None  # [depth, R] float32
    soft_tokens: np.ndarray | None  # [depth, E] float32, inputs of the embedder
    noise: np.ndarray | None  # [depth, R] float32, standard normal; latents are mean + sigma * noise
    weight_version: int


class PolicyEngine:
    """Build it with `start`; call `shutdown` when done."""

    def __init__(self, llm: Any, processor: ClipProcessor, config: EngineConfig, embedder_dim: int) -> None:
        self._llm = llm
        self.processor = processor
        self._refine_token = refine_token_id(processor.tokenizer)
        self._end_token = int(processor.tokenizer.eos_token_id)
        self._embedder_dim = embedder_dim
        self._slots: asyncio.Queue[int] = asyncio.Queue()
        for slot in range(config.latent_slots):
            self._slots.put_nowait(slot)
        self._numbers = itertools.count()
        self._running = 0
        self._idle, self._open = asyncio.Event(), asyncio.Event()  # no request runs; requests may start
        self._idle.set()
        self._open.set()
        self.weight_version = 0

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
            CheckpointError: the folder is not a policy checkpoint.
        """
        set_environment(config, device)
        register()
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        sizes = policy_sizes(folder, allow_bin=allow_bin)
        from vsr1.engine.latent_table import MAX_DEPTH

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
            logits_processors=["vsr1.engine.latents:LatentLogitsProcessor"],
            worker_extension_cls="vsr1.engine.worker.LatentWorkerExtension",
            logprobs_mode="processed_logprobs",
            async_scheduling=False,  # the logits processor needs the newest token
            enable_log_requests=False,
            **engine_options(config, device),
        )
        with compat.prepared_children():
            llm = AsyncLLM.from_engine_args(args)
        return cls(llm, ClipProcessor(folder), config, sizes.embedder)

    async def generate(
        self,
        prompt: str,
        clip: Clip | None,
        *,
        max_tokens: int,
        latents: int,
        temperature: float,
        seed: int,
        sigma: float = 0.0,
        words: int | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> Reply:
        """One reply about one clip, with latents if the reply ends in the refine token.

        Args:
            prompt: chat markup with one video placeholder, or with none.
            clip: what goes there.
            max_tokens: most sampled tokens, the refine token included.
            latents: latents after the refine token, up to 8; with 0 that token is a word like any other. A reply that
                accepts its video has none.
            temperature: 0 decodes greedily.
            seed: of this request's sampling, of tokens and of noise.
            sigma: standard deviation of the noise that is added to each latent.
            words: for measurements: the reply has exactly so many tokens, then the refine token when `latents` > 0.
            on_text: gets the reply's text piece by piece while it is sampled; the pieces together are the text.

        Raises:
            PromptError: prompt and clip are longer than `rollout.engine.max_model_len`.
        """
        from vllm import SamplingParams
        from vllm.exceptions import VLLMValidationError
        from vllm.sampling_params import RequestOutputKind

        slot = await self._slots.get()
        try:
            while not self._open.is_set():  # again, if the next push began before this request woke up
                await self._open.wait()
        except asyncio.CancelledError:
            self._slots.put_nowait(slot)
            raise
        self._running += 1
        self._idle.clear()
        try:
            if words is not None:
                max_tokens = words + min(latents, 1)
            params = SamplingParams(
                temperature=temperature,
                seed=seed,
                max_tokens=max_tokens + latents + (words is None),  # the end token after a limit is forced
                logprobs=0,
                stop_token_ids=[self._end_token] if words is None else [],
                ignore_eos=words is not None,
                detokenize=False,
                output_kind=RequestOutputKind.CUMULATIVE if on_text else RequestOutputKind.FINAL_ONLY,
                extra_args={
                    "slot": slot,
                    "depth": latents,
                    "text_limit": max_tokens,
                    "refine_token": self._refine_token,
                    "end_token": self._end_token,
                    "seed": seed,
                    "sigma": sigma,
                    "refine_at": words if words is not None and latents else -1,
                },
            )
            ids = self.processor.tokenizer.encode(prompt, add_special_tokens=False)
            request: dict[str, Any] = {"prompt_token_ids": ids}
            if clip is not None:
                request["multi_modal_data"] = {"video": [(clip.frames, engine_metadata(clip.timestamps))]}
                request["multi_modal_uuids"] = {"video": [clip.content_hash]}
            final, told = await self._finished(request, params, on_text)
            reply = await self._reply(final, params)
            if on_text and len(reply.text) > len(told):
                on_text(reply.text[len(told) :])
            return reply
        except VLLMValidationError as error:
            raise PromptError(str(error)) from error
        finally:  # without an await, so that a second cancellation cannot keep the slot
            self._running -= 1
            if not self._running:
                self._idle.set()
            self._slots.put_nowait(slot)

    async def _finished(self, request: dict[str, Any], params: Any, on_text: Callable[[str], None] | None) -> Any:
        """vLLM's last output of a request, and the text that `on_text` was told.

        A request that is cancelled before it leaves for the engine process makes vLLM believe that its clip is there;
        the next one with that clip ends in an error without a token. By then vLLM knows better and takes it again.

        Raises:
            RuntimeError: vLLM ended the request, and not because the reply was over.
        """
        for _ in range(ATTEMPTS):
            request_id, told = f"r{next(self._numbers)}", ""
            final: Any = None
            async for output in self._llm.generate(request, params, request_id):
                final = output
                if on_text:
                    told = self._tell(output.outputs[0].token_ids, params.extra_args, told, on_text)
            if final is None:
                raise RuntimeError(f"the engine ended request {request_id} without an answer")
            reply = final.outputs[0]
            if reply.finish_reason in ("stop", "length"):
                return final, told
            if reply.finish_reason != "error" or reply.token_ids:
                break
        raise RuntimeError(f"the engine ended request {request_id} without an answer: {reply.finish_reason}")

    def _tell(self, ids: Sequence[int], extra: dict[str, Any], told: str, on_text: Callable[[str], None]) -> str:
        """Pass on what is new in the text; what follows the refine token or the limit is not text."""
        said = list(ids)[: extra["text_limit"]]
        if extra["depth"] and self._refine_token in said:
            said = said[: said.index(self._refine_token) + 1]
        text = self.processor.tokenizer.decode(said, skip_special_tokens=False)
        if len(text) > len(told) and not text.endswith("\N{REPLACEMENT CHARACTER}"):  # half a character comes later
            on_text(text[len(told) :])
            return text
        return told

    async def push_weights(
        self, receive: str, args: tuple[Any, ...], version: int, manifest: Manifest | None = None
    ) -> None:
        """Take new weights once no request runs, and empty every cache that depends on them.

        Args:
            receive: how they come: `receive_file`, `receive_nccl` or `receive_ipc`, see `vsr1.engine.worker`.
            args: of that call; for `receive_file` the paths of all weight files.
            version: stamped on every reply from now on.
            manifest: what must have arrived; None leaves that unchecked.

        Raises:
            PushError: a tensor of the manifest is not in the engine, or vLLM kept a cache. The engine must not be used
                further: it holds a mixture.
        """
        self._open.clear()
        try:
            await self._idle.wait()
            await self._llm.collective_rpc(receive, args=args)
            await self.reset_caches()
            if manifest is not None:
                await self.check_weights(manifest)
            self.weight_version = version
        finally:
            self._open.set()

    async def check_weights(self, manifest: Manifest) -> None:
        """Compare what the engine holds with a manifest.

        Raises:
            PushError: names every tensor that differs.
        """
        [faults] = await self._llm.collective_rpc("weight_faults", args=(pickle.dumps(manifest),))
        if faults:
            raise PushError(f"{len(faults)} of {len(manifest)} tensors did not arrive: " + "; ".join(faults))

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
        """Raises vLLM's own error when the engine process is gone."""
        await self._llm.check_health()

    def shutdown(self) -> None:
        self._llm.shutdown()
        self._llm = None

    async def _reply(self, output: Any, params: Any) -> Reply:
        completion, extra = output.outputs[0], params.extra_args
        slot, depth, max_tokens = extra["slot"], extra["depth"], extra["text_limit"]
        ids = list(completion.token_ids)
        from_here = max(extra["refine_at"], 0)
        refined = depth > 0 and self._refine_token in ids[from_here:]
        if refined:
            ids = ids[: ids.index(self._refine_token, from_here) + 1]
        over = len(ids) > max_tokens
        ids = ids[:max_tokens]  # what follows was forced, not sampled
        text = self.processor.tokenizer.decode(ids, skip_special_tokens=False)
        refined = refined and (extra["refine_at"] >= 0 or read_verdict(text) != "matched")
        reason = "refined" if refined else "length" if over else "stop"
        logprobs = [step[token].logprob for token, step in zip(ids, completion.logprobs, strict=False)]
        latents = soft = noise = None
        if refined:
            [(_, raw_latents, raw_soft)] = await self._llm.collective_rpc("take_latents", args=(slot, depth))
            latents = np.frombuffer(raw_latents, np.float32).reshape(depth, -1)
            soft = np.frombuffer(raw_soft, np.float32).reshape(depth, self._embedder_dim)
            if extra["sigma"]:
                from vsr1.engine.latent_table import latent_noise

                noise = np.stack([latent_noise(extra["seed"], k, latents.shape[1]).numpy() for k in range(depth)])
        version = self.weight_version
        return Reply(list(output.prompt_token_ids), ids, logprobs, text, reason, latents, soft, noise, version)


def engine_version() -> str:
    from vllm import __version__

    return str(__version__)
