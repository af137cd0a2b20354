"""One DeepSpeed rank of the learner, the same class for both stages.

It minimises `vsr1.rl.example_loss`. All ranks make the same number of passes in a step.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from math import isfinite
from pathlib import Path
from random import getstate, setstate
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from vsr1 import compat
from vsr1.model.checkpoint import copy_processor, load_policy, policy_sizes, write_weights
from vsr1.model.embedder import Embedder
from vsr1.model.manifest import Manifest, record
from vsr1.model.processor import ClipProcessor
from vsr1.model.recompute import recompute_mlps
from vsr1.rl.batch import BatchTotals, Example, LearnerError, micro_batches
from vsr1.rl.example_loss import ExampleLoss, VideoVectors
from vsr1.settings.parts import AgentConfig, ModelConfig
from vsr1.settings.training import GrpoConfig, SftConfig

STATE = "deepspeed"  # folder of DeepSpeed's files in a saved state


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
        self._stage, self._learner, self._folder = stage, stage.learner, model.policy
        embedder = Embedder.load(model.embedder, device=model.device, dtype=model.dtype)
        policy_sizes(model.policy, allow_bin=model.allow_bin, embedder_width=embedder.dim)
        self.policy = load_policy(model.policy, device=model.device, dtype=model.dtype, allow_bin=model.allow_bin)
        reference = None
        if isinstance(stage, GrpoConfig) and stage.objective.kl != "none":
            reference = load_policy(
                model.policy, device=model.device, dtype=model.dtype, allow_bin=model.allow_bin
            ).requires_grad_(False)
        self._freeze()
        if self._learner.gradient_checkpointing:
            recompute_mlps([*self.policy.model.language_model.layers, *self.policy.model.visual.blocks])
        self._loss = ExampleLoss(
            stage,
            agent,
            self.policy,
            reference,
            embedder,
            vectors,
            ClipProcessor(model.policy),
            temperature=temperature,
        )
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
