"""One DeepSpeed rank of the learner, the same class for both stages.

Stage 1 minimises token cross-entropy, Stage 2 a policy loss on the engine's own tokens and, where latents are actions,
on its own latents; both add the retrieval loss, whose gradient runs through the frozen embedder into the latents. All
ranks make the same number of passes in a step.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from random import getstate, setstate
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from vsr1 import compat
from vsr1.config import AgentConfig, GrpoConfig, ModelConfig, SftConfig
from vsr1.formats.checkpoint import copy_processor, load_policy, policy_sizes, write_weights
from vsr1.formats.clips import Clip
from vsr1.formats.dataset import DatasetFolder
from vsr1.model.embedder import Embedder
from vsr1.model.forward import ForwardState, Row, prefill, roll_latents, token_logprobs
from vsr1.model.manifest import Manifest, record
from vsr1.model.recompute import recompute_mlps
from vsr1.model.vision import VisionFeatures, blank_clip, encode_clips
from vsr1.rl.batch import BatchTotals, Example, micro_batches
from vsr1.rl.losses import retrieval_loss
from vsr1.rl.objective import Counted, TokenBatch, latent_objective, token_objective
from vsr1.video.processor import ClipProcessor, ProcessedClip

STATE = "deepspeed"  # folder of DeepSpeed's files in a saved state


class LearnerError(RuntimeError):
    """A step that must not be taken; the message names the rank and the quantity."""


@dataclass
class VideoVectors:
    """Corpus vectors of a split: unit rows [videos, E] and the row of each video id."""

    matrix: torch.Tensor
    rows: dict[str, int]

    def of(self, videos: list[str]) -> torch.Tensor:
        return self.matrix[[self.rows[video] for video in videos]]


class _Pass(torch.nn.Module):
    """What DeepSpeed calls: it counts passes by calls of its module, and ZeRO-3 loses gradients that it did not see."""

    def __init__(self, policy: torch.nn.Module) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, loss: Callable[..., Any], *args: Any) -> Any:
        return loss(*args)


class Learner:
    """Built on every rank after the process group exists (gloo on CPU, NCCL on GPU)."""

    def __init__(
        self,
        stage: SftConfig | GrpoConfig,
        model: ModelConfig,
        agent: AgentConfig,
        vectors: VideoVectors,
        *,
        temperature: float = 1.0,
    ) -> None:
        self._stage, self._learner, self._retrieval = stage, stage.learner, stage.retrieval_loss
        self._folder, self._agent = model.policy, agent
        self._temperature = temperature
        self._vectors = vectors
        self._processor = ClipProcessor(model.policy)
        self._end_token = int(self._processor.tokenizer.eos_token_id)
        self._embedder = Embedder.load(model.embedder, device=model.device, dtype=model.dtype)
        policy_sizes(model.policy, allow_bin=model.allow_bin, embedder_width=self._embedder.dim)
        self.policy = load_policy(model.policy, device=model.device, dtype=model.dtype, allow_bin=model.allow_bin)
        self._reference = None
        if isinstance(stage, GrpoConfig) and stage.objective.kl != "none":
            self._reference = load_policy(
                model.policy, device=model.device, dtype=model.dtype, allow_bin=model.allow_bin
            ).requires_grad_(False)
        self._freeze()
        if self._learner.gradient_checkpointing:
            recompute_mlps([*self.policy.model.language_model.layers, *self.policy.model.visual.blocks])
        self._engine = self._deepspeed(model)
        self.steps = 0  # optimiser steps taken, those before a resume included

    def step(self, examples: list[Example], rounds: int, totals: BatchTotals, learning_rate: float) -> dict[str, float]:
        """One optimiser step on this rank's part.

        Args:
            examples: this rank's part, at least one.
            rounds: forward passes that every rank makes; missing ones are padded with weight zero.
            totals: of the whole batch, over all ranks.
            learning_rate: of the backbone; the heads keep their ratio to it.

        Returns:
            sums over this rank's part, to be added over ranks, maxima where the name ends in `_max`, and the gradient
            norm.

        Raises:
            LearnerError: a loss or a gradient norm that is not finite; the weights are as before this step.
        """
        where = f"rank {torch.distributed.get_rank()}, step {self.steps + 1}"
        heads = self._learner.head_learning_rate / self._learner.learning_rate
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate * (heads if group["name"] == "heads" else 1.0)
        sums: dict[str, float] = {}
        passes = micro_batches(examples, self._learner.micro_tokens)
        if len(passes) > rounds:
            raise LearnerError(f"{where}: the examples take {len(passes)} passes, more than the {rounds} agreed on")
        world = torch.distributed.get_world_size()
        for i in range(rounds):
            part = passes[i] if i < len(passes) else []
            loss, counted = self._engine(self._loss, part or passes[-1][-1:], totals)
            if not torch.isfinite(loss):
                raise LearnerError(f"{where}: the loss of pass {i} is {loss.item()}")
            # DeepSpeed averages gradients over ranks; the sums are already shares of the whole batch.
            self._engine.set_gradient_accumulation_boundary(i == rounds - 1)
            self._engine.backward(loss * world if part else loss * 0)
            if part:
                for name, value in counted.items():
                    known = sums.get(name, 0.0)
                    sums[name] = max(known, value) if name.endswith("_max") else known + value
        self._engine.step()  # takes no step where the norm is not finite
        norm = float(self._engine.get_global_grad_norm())
        if not isfinite(norm):
            raise LearnerError(f"{where}: the gradient norm is not finite; no step was taken, lower the learning rate")
        self.steps += 1
        return {**sums, "grad_norm": norm}

    def full_weights(self, *, trained_only: bool = True) -> Iterator[tuple[str, torch.Tensor]]:
        """Whole tensors by checkpoint key, one at a time; ZeRO-3 gathers each, so all ranks must iterate to the end."""
        for name, parameter in self.policy.named_parameters():
            if parameter.requires_grad or not trained_only:
                with self._gathered([parameter]):
                    whole = parameter.detach()
                    yield name, whole.clone() if self._learner.zero_stage == 3 else whole

    def layout(self) -> list[tuple[str, tuple[int, ...], str]]:
        """Key, shape and dtype of what `full_weights` yields, without gathering."""
        return [
            (name, tuple(getattr(p, "ds_shape", p.shape)), str(p.dtype).removeprefix("torch."))
            for name, p in self.policy.named_parameters()
            if p.requires_grad
        ]

    def weights(self) -> tuple[bytes, Manifest]:
        """All parameters that this stage trains as safetensors bytes, and their manifest; a call for every rank."""
        state = {name: tensor.cpu().clone() for name, tensor in self.full_weights()}
        return save(state), {name: record(tensor) for name, tensor in state.items()}

    def save(self, folder: Path) -> None:
        """Write a complete checkpoint folder; a call for every rank, rank 0 writes."""
        state = {name: tensor.cpu().clone() for name, tensor in self.full_weights(trained_only=False)}
        if torch.distributed.get_rank() == 0:
            write_weights(folder, self.policy.config, state)
            copy_processor(self._folder, folder)

    def save_state(self, folder: Path) -> None:
        """Write all that the next step depends on: trained weights, optimiser, random state and number of steps.

        A call for every rank, on a folder that all of them see; each writes its own part. Frozen weights are not in it:
        they come from the checkpoint that the run started with.
        """
        self._engine.save_checkpoint(
            str(folder), STATE, {"steps": self.steps}, save_latest=False, exclude_frozen_parameters=True
        )
        torch.save(_random_state(), folder / f"random-{torch.distributed.get_rank()}.pt")
        torch.distributed.barrier()

    def load_state(self, folder: Path) -> None:
        """Go on from what `save_state` wrote, to the bit; a call for every rank, before the first step.

        Raises:
            LearnerError: no state of as many ranks in the folder.
        """
        rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
        saved = len(list(folder.glob("random-*.pt")))
        if saved != ranks:
            raise LearnerError(f"rank {rank}: {folder} is a state of {saved} ranks, not of {ranks}; use as many")
        _, extra = self._engine.load_checkpoint(str(folder), STATE, load_module_strict=False)
        self.steps = extra["steps"]
        _set_random_state(torch.load(folder / f"random-{rank}.pt", weights_only=True))

    def _gathered(self, parameters: list[torch.nn.Parameter]) -> AbstractContextManager[None]:
        if self._learner.zero_stage < 3:
            return nullcontext()
        import deepspeed

        gathered: AbstractContextManager[None] = deepspeed.zero.GatheredParameters(parameters)
        return gathered

    def _loss(self, examples: list[Example], totals: BatchTotals) -> tuple[torch.Tensor, Counted]:
        rows, features, state = self._prefill(examples)
        logprobs, entropy = token_logprobs(self.policy, state, rows, self._temperature)
        if isinstance(self._stage, GrpoConfig):
            total, counted = self._policy_loss(examples, rows, features, logprobs, totals)
        else:
            end = self.policy.lm_head(state.after_norm[:, -1]).float().log_softmax(-1)[:, self._end_token]
            total = -(logprobs.sum() + end.sum()) / totals.tokens
            counted = {"token_loss": -float(logprobs.detach().sum()) / totals.tokens}
        counted["entropy"] = float(entropy.detach().sum()) / totals.tokens
        for part, values in self._latent_losses(examples, state, totals):
            total = total + part
            counted |= values
        return total, counted

    def _policy_loss(
        self,
        examples: list[Example],
        rows: list[Row],
        features: list[VisionFeatures],
        logprobs: torch.Tensor,
        totals: BatchTotals,
    ) -> tuple[torch.Tensor, Counted]:
        assert isinstance(self._stage, GrpoConfig)
        lengths = [len(e.response_ids) for e in examples]
        advantages = torch.tensor([e.advantage for e in examples]).repeat_interleave(torch.tensor(lengths))
        behaviour = torch.tensor([p for e in examples for p in e.behaviour_logprobs or []])
        reference = None
        if self._reference is not None:
            with torch.no_grad():  # the vision tower is frozen in this stage, so its features are the reference's too
                state = prefill(self._reference.model, rows, features, keep_cache=False)
                reference, _ = token_logprobs(self._reference, state, rows, self._temperature)
        batch = TokenBatch(logprobs, behaviour.to(logprobs), reference, advantages.to(logprobs), lengths)
        return token_objective(batch, self._stage.objective, totals, self._agent.max_new_tokens)

    def _latent_losses(
        self, examples: list[Example], state: ForwardState, totals: BatchTotals
    ) -> Iterator[tuple[torch.Tensor, Counted]]:
        """Losses that reach the heads. Every row of the pass is rolled, so that all ranks touch the same weights."""
        depth, device = self._agent.depth, state.after_norm.device
        actions = self._stage.latents if isinstance(self._stage, GrpoConfig) else None
        noise = None
        if depth and actions and actions.sigma:
            shape = (len(examples), depth, self.policy.config.refine_dim)
            sampled = [i for i, e in enumerate(examples) if e.noise is not None]
            given, noise = torch.zeros(shape), torch.zeros(shape)
            for i in sampled:
                given[i], noise[i] = torch.tensor(examples[i].latents), torch.tensor(examples[i].noise)
            given, noise = given.to(device), noise.to(device)
        if noise is not None and actions and actions.weight:
            means = roll_latents(self.policy, state, depth, given=given)
            advantages = torch.tensor([e.latent_advantage for e in examples], device=device)
            if sampled:
                yield latent_objective(
                    given[sampled], means[sampled], noise[sampled], advantages[sampled], actions, totals
                )
            else:
                yield 0 * means.sum(), {}
        if depth and self._retrieval.weight > 0:
            draws = actions.sigma * noise if actions and noise is not None else None
            latents = roll_latents(self.policy, state, depth, draws)
            wanted = [i for i, example in enumerate(examples) if example.refined and example.negatives]
            if not wanted:
                yield 0 * self.policy.soft_tokens(latents).sum(), {}
                return
            retrieval = self._retrieval_losses(examples, wanted, latents).sum() / totals.refined
            norms = latents.detach()[wanted].norm(dim=-1)
            yield (
                self._retrieval.weight * retrieval,
                {
                    "retrieval_loss": float(retrieval.detach()),
                    "latents/norm": float(norms.mean(dim=-1).sum()) / totals.refined,
                },
            )

    def _retrieval_losses(self, examples: list[Example], wanted: list[int], latents: torch.Tensor) -> torch.Tensor:
        before = [np.zeros((0, latents.shape[-1])) if (e := examples[i].earlier_latents) is None else e for i in wanted]
        counts = [len(part) + latents.shape[1] for part in before]
        joined = [torch.cat([torch.tensor(b).to(latents), latents[i]]) for b, i in zip(before, wanted, strict=True)]
        soft = self.policy.soft_tokens(torch.cat(joined)).split(counts)  # in one call, as on every other rank
        queries = self._embedder.query_vectors([examples[i].query for i in wanted], list(soft))
        losses = []
        for query, i in zip(queries, wanted, strict=True):
            negatives = examples[i].negatives[: self._retrieval.negatives]
            vectors = self._vectors.of([examples[i].positive, *negatives]).to(query)
            losses.append(retrieval_loss(query, vectors[0], vectors[1:], self._retrieval.temperature))
        return torch.stack(losses)

    def _prefill(self, examples: list[Example]) -> tuple[list[Row], list[VisionFeatures], ForwardState]:
        """Rows of a pass, what they show, and their states.

        A pass without video runs the tower on a blank clip that no row shows: all ranks must call the same modules, in
        the same order forward and backward, or ZeRO-3 waits for ever.
        """
        clips, index = _distinct([example.clip for example in examples], self._processor)
        rows = [
            Row(e.prompt_ids, e.response_ids, at, None if at is None else clips[at].grid)
            for e, at in zip(examples, index, strict=True)
        ]
        features = self._features(clips)
        return rows, features, prefill(self.policy.model, rows, features, keep_cache=True)

    def _features(self, clips: list[ProcessedClip]) -> list[VisionFeatures]:
        visual = self.policy.model.visual
        shown = [(clip.pixels, clip.grid) for clip in clips] or [blank_clip(visual)]
        with torch.set_grad_enabled(any(parameter.requires_grad for parameter in visual.parameters())):
            return encode_clips(visual, [p.to(self.policy.dtype) for p, _ in shown], [grid for _, grid in shown])

    def _freeze(self) -> None:
        """Stage 1 trains language model, mergers and heads; Stage 2 freezes the vision tower (method.md §1.6)."""
        visual = self.policy.model.visual
        visual.requires_grad_(False)
        if isinstance(self._stage, SftConfig):
            visual.merger.requires_grad_(True)
            visual.deepstack_merger_list.requires_grad_(True)
        elif not self._stage.train_heads:
            for parameter in self.policy.head_parameters():
                parameter.requires_grad_(False)
        self.policy.refine_gate.requires_grad_(False)

    def _deepspeed(self, model: ModelConfig) -> Any:
        if model.device == "cpu":
            os.environ["DS_ACCELERATOR"] = "cpu"
        import deepspeed

        compat.skip_operator_builds()
        heads = {id(p) for p in self.policy.head_parameters()}
        trained = [p for p in self.policy.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if id(p) not in heads], "name": "backbone"},
            {"params": [p for p in trained if id(p) in heads], "name": "heads"},
        ]
        groups = [group for group in groups if group["params"]]
        optimizer = torch.optim.AdamW(
            groups, lr=self._learner.learning_rate, weight_decay=self._learner.weight_decay, betas=(0.9, 0.999)
        )
        settings = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": self._learner.max_grad_norm,
            "zero_optimization": {"stage": self._learner.zero_stage},
            "zero_force_ds_cpu_optimizer": False,
            "zero_allow_untested_optimizer": True,
            "bf16": {"enabled": model.dtype == "bfloat16"},
            "steps_per_print": 10**9,
        }
        engine, *_ = deepspeed.initialize(
            model=_Pass(self.policy), optimizer=optimizer, config=settings, dist_init_required=False
        )
        return engine


def _random_state() -> dict[str, Any]:
    """Of every generator of this process, in types that load without running code."""
    numpy_state: Any = np.random.get_state()  # name, keys, place and two numbers
    name, keys, *rest = numpy_state
    gpu = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return {"torch": torch.get_rng_state(), "cuda": gpu, "numpy": [name, keys.tolist(), *rest], "python": getstate()}


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"])
    np.random.set_state(tuple(state["numpy"]))
    setstate(state["python"])


def load_vectors(folder: DatasetFolder, split: str) -> VideoVectors:
    """Corpus vectors for the retrieval loss."""
    matrix = torch.from_numpy(np.load(folder.video_embeddings(split), allow_pickle=False))
    rows = json.loads(folder.docid2row(split).read_text(encoding="utf-8"))
    return VideoVectors(torch.nn.functional.normalize(matrix, dim=-1), rows)


def _distinct(clips: list[Clip | None], processor: ClipProcessor) -> tuple[list[ProcessedClip], list[int | None]]:
    """Process each clip of a batch once; returns them and which one each row shows, None without video."""
    order: dict[str, int] = {}
    processed: list[ProcessedClip] = []
    for clip in clips:
        if clip is not None and clip.content_hash not in order:
            order[clip.content_hash] = len(processed)
            processed.append(processor.process(clip))
    return processed, [None if clip is None else order[clip.content_hash] for clip in clips]
