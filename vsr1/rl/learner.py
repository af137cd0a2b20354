"""One DeepSpeed rank of the learner, the same class for both stages: it minimises `vsr1.rl.example_loss`."""

from __future__ import annotations

import os
import shutil
import socket
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from math import isfinite
from pathlib import Path
from random import getstate, setstate
from typing import Any, TypeVar

import numpy as np
import torch

from vsr1 import compat
from vsr1.formats.atomic import replacing_folder, whole_folder
from vsr1.formats.dataset import DatasetFolder
from vsr1.model.checkpoint import copy_processor, load_policy, policy_sizes, write_weights
from vsr1.model.embedder import Embedder
from vsr1.model.processor import ClipProcessor
from vsr1.rl.batch import Example, LearnerError, add_totals, batch_totals, micro_batches
from vsr1.rl.example_loss import ExampleLoss
from vsr1.rl.features import ReadClip
from vsr1.rl.flops import ModelFlops
from vsr1.rl.meter import peak_flops, work_numbers
from vsr1.rl.objective import Counted, Values, fetched, merged
from vsr1.rl.refined import VideoVectors, load_vectors
from vsr1.rl.repartition import load_repartitioned
from vsr1.settings.parts import AgentConfig, ModelConfig
from vsr1.settings.training import GrpoConfig, LearnerConfig, SftConfig
from vsr1.storage import fetched_folder, sent_as, sent_folder, url_of

STATE = "deepspeed"  # folder of DeepSpeed's files in a saved state
Value = TypeVar("Value")


class _Pass(torch.nn.Module):
    """What DeepSpeed calls: it counts passes by calls of its module, and ZeRO-3 loses gradients that it did not see."""

    def __init__(self, policy: torch.nn.Module) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, loss: Callable[..., Any], *args: Any) -> Any:
        return loss(*args)


class Learner:
    """Built on every rank after the process group exists (gloo on CPU, NCCL on GPU).

    Its public methods that gather or step are calls for every rank (the ranks' rule, `vsr1.rl`). `engine` is
    DeepSpeed's, `loss` what it minimises.
    """

    def __init__(
        self,
        stage: SftConfig | GrpoConfig,
        model: ModelConfig,
        agent: AgentConfig,
        vectors: VideoVectors,
        read_clip: ReadClip,
        *,
        temperature: float = 1.0,
    ) -> None:
        self._stage, self._learner, self._folder = stage, stage.learner, model.policy
        embedder = Embedder.load(model.embedder, device=model.device, dtype=model.dtype)
        known = None
        if isinstance(stage, GrpoConfig) and stage.loss_embedder and stage.loss_corpus:
            known_vectors = load_vectors(DatasetFolder(stage.loss_corpus), "train")
            known = Embedder.load(stage.loss_embedder, device=model.device, dtype=model.dtype), known_vectors
        policy_sizes(model.policy, allow_bin=model.allow_bin, embedder_width=embedder.dim)
        load = partial(load_policy, model.policy, device=model.device, dtype=model.dtype, allow_bin=model.allow_bin)
        self.policy = load()
        is_compared = isinstance(stage, GrpoConfig) and stage.objective.kl != "none"
        reference = load().requires_grad_(False) if is_compared else None
        self._freeze()
        sources = embedder, vectors, ClipProcessor(model.policy), read_clip
        self.loss = ExampleLoss(stage, agent, self.policy, reference, *sources, temperature=temperature, known=known)
        self.engine = self._deepspeed(model)
        self.steps = 0  # optimiser steps taken, those before a resume included

    def step(self, examples: list[Example], learning_rate: float) -> Counted:
        """Take one optimiser step on this rank's part of a batch.

        Args:
            examples: at least one.
            learning_rate: of the backbone; the heads keep their ratio to it.

        Returns:
            the numbers of the whole batch, the same on every rank: of the losses, the gradient norm, the tokens that
            were trained and what the step took (`vsr1.rl.meter.work_numbers`).

        Raises:
            LearnerError: a loss or a gradient norm that is not finite, or a GPU that is too small for a pass; the
                weights are as before this step.
        """
        where = f"rank {torch.distributed.get_rank()}, step {self.steps + 1}"
        heads = self._learner.head_learning_rate / self._learner.learning_rate
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate * (heads if group["name"] == "heads" else 1.0)
        passes = micro_batches(examples, self._learner.micro_tokens)
        meter = self.loss.meter
        meter.begin()
        ranks = _of_all_ranks((batch_totals(examples), len(passes)))
        totals, rounds = add_totals([counts for counts, _ in ranks]), max(count for _, count in ranks)
        values: list[Values] = []  # of every pass, on the device until the last one is queued
        for i in range(rounds):  # a rank with fewer passes makes the rest with weight zero
            part = passes[i] if i < len(passes) else []
            groups = part or [passes[-1][-1][:1]]
            with memory_named(f"{where}, pass {i}", groups, self._learner):
                loss, numbers = self.engine(self.loss, groups, totals)
                values.append(numbers)
                # Without a wait for it: a loss that is not finite spoils the gradients, and with them no step is taken.
                loss = loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan)
                # DeepSpeed averages gradients over ranks; the sums are already shares of the whole batch.
                self.engine.set_gradient_accumulation_boundary(i == rounds - 1)
                with meter.part("backward"):
                    self.engine.backward(loss * len(ranks) if part else loss * 0)
        with meter.part("optimise"):
            self.engine.step()  # takes no step where the norm is not finite
        counted = fetched(values)
        for i, numbers in enumerate(counted):
            if not isfinite(numbers["loss"]):
                raise LearnerError(f"{where}: the loss of pass {i} is {numbers['loss']}; no step was taken")
        norm = float(self.engine.get_global_grad_norm())
        if not isfinite(norm):
            raise LearnerError(f"{where}: the gradient norm is not finite; no step was taken, lower the learning rate")
        self.steps += 1
        own = merged(counted[: len(passes)]) | {"grad_norm": norm}
        of_ranks = _of_all_ranks((own, meter.end()))
        work = work_numbers([work for _, work in of_ranks], peak_flops(self.policy.device, self.policy.dtype))
        return merged([numbers for numbers, _ in of_ranks]) | work | {"tokens": float(totals.tokens)}

    def agreed(self, value: float) -> float:
        """Return what the first rank gives here, on every rank."""
        return _of_all_ranks(value)[0]

    @property
    def flops(self) -> ModelFlops:
        """What a forward pass costs."""
        return ModelFlops.of(self.policy.config)

    def logprobs(self, examples: list[Example]) -> list[list[float]]:
        """Return log-probs of the replies of this rank's part under the present weights, without a step."""
        passes = micro_batches(examples, self._learner.micro_tokens)
        values: dict[int, list[float]] = {}
        with torch.no_grad():
            for i in range(max(_of_all_ranks(len(passes)))):
                part = passes[i] if i < len(passes) else [passes[-1][-1][:1]]
                own = [one for group in part for one in group]
                of_each = self.engine(self.loss.logprobs, part).split([len(one.response_ids) for one in own])
                values |= {id(one): logprobs.tolist() for one, logprobs in zip(own, of_each, strict=True)}
        return [values[id(one)] for one in examples]

    def evaluate(self, examples: list[Example]) -> Counted:
        """Return what `step` counts of this rank's part of a batch and those of the others, without a step."""
        passes = micro_batches(examples, self._learner.micro_tokens)
        ranks = _of_all_ranks((batch_totals(examples), len(passes)))
        totals, counted = add_totals([counts for counts, _ in ranks]), list[Values]()
        with torch.no_grad():
            for i in range(max(count for _, count in ranks)):
                part = passes[i] if i < len(passes) else []
                _, numbers = self.engine(self.loss, part or [passes[-1][-1][:1]], totals)
                counted += [numbers] if part else []
        return merged(_of_all_ranks(merged(fetched(counted)))) | {"tokens": float(totals.tokens)}

    def full_weights(self, *, trained_only: bool = True) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield whole tensors by checkpoint key; ZeRO-3 gathers each, so all ranks must iterate to the end."""
        import deepspeed

        for name, parameter in self.policy.named_parameters():
            if parameter.requires_grad or not trained_only:
                with deepspeed.zero.GatheredParameters([parameter], enabled=self._learner.zero_stage == 3):
                    whole = parameter.detach()
                    yield name, whole.clone() if self._learner.zero_stage == 3 else whole

    def layout(self) -> list[tuple[str, tuple[int, ...], str]]:
        """Return key, shape and dtype of what `full_weights` yields, without gathering."""
        return [
            (name, tuple(getattr(p, "ds_shape", p.shape)), str(p.dtype).removeprefix("torch."))
            for name, p in self.policy.named_parameters()
            if p.requires_grad
        ]

    def save(self, folder: Path) -> None:
        """Write a complete checkpoint folder, which appears whole or not at all; rank 0 writes."""
        state = on_rank_0(self.full_weights(trained_only=False))
        if state is not None:
            with replacing_folder(folder) as part:
                write_weights(part, self.policy.config, state)
                copy_processor(self._folder, part)
            sent_folder(folder)

    def save_state(self, folder: Path) -> None:
        """Write all that the next step depends on: trained weights, optimiser, random state and number of steps.

        On a folder that all ranks see, or that has a URL, each writes its own part. Frozen weights are not in it: they
        come from the checkpoint that the run started with.
        """
        self.engine.save_checkpoint(
            str(folder), STATE, {"steps": self.steps}, save_latest=False, exclude_frozen_parameters=True
        )
        torch.save(_random_state(), folder / f"random-{torch.distributed.get_rank()}.pt")
        torch.distributed.barrier()
        if url_of(folder) is not None:
            hosts = _of_all_ranks(socket.gethostname())
            if hosts.index(socket.gethostname()) == torch.distributed.get_rank():  # one of a node sends what is there
                sent_as(folder, whole_folder(folder))
                for earlier in folder.parent.glob(".part-*"):  # nobody renames them where the driver is not
                    if earlier != folder:
                        shutil.rmtree(earlier)
            torch.distributed.barrier()

    def load_state(self, folder: Path) -> None:
        """Go on from what `save_state` wrote, called before the first step: to the bit, if as many ranks wrote it.

        Raises:
            LearnerError: no state of as many ranks in the folder, and ZeRO-3.
        """
        rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
        saved = len(list(fetched_folder(folder).glob("random-*.pt")))
        if saved != ranks and self._learner.zero_stage == 3:
            raise LearnerError(
                f"rank {rank}: {folder} is a state of {saved} ranks, not of {ranks}, and zero_stage=3 cannot change "
                "that; use as many"
            )
        _, extra = self.engine.load_checkpoint(
            str(folder), STATE, load_module_strict=False, load_optimizer_states=saved == ranks
        )
        if saved != ranks:
            load_repartitioned(self.engine.optimizer, folder / STATE, saved)
        self.steps = extra["steps"]
        _set_random_state(torch.load(folder / f"random-{rank % saved}.pt", weights_only=True))

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
            groups,
            lr=self._learner.learning_rate,
            weight_decay=self._learner.weight_decay,
            betas=(0.9, 0.999),
            fused=True,
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


@contextmanager
def memory_named(where: str, groups: list[list[Example]], learner: LearnerConfig) -> Iterator[None]:
    """Run a pass over groups of examples that share their prompt.

    Raises:
        LearnerError: the GPU's memory is too small for it; the message says how large the pass is and what to set.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        replies = sum(map(len, groups))
        tokens = sum(len(group[0].prompt_ids) + sum(len(one.response_ids) for one in group) for group in groups)
        raise LearnerError(
            f"{where}: the memory of the GPU is too small for {replies} replies of {tokens} tokens; lower "
            f"learner.micro_tokens={learner.micro_tokens}, or compute layers again "
            f"(learner.gradient_checkpointing={learner.gradient_checkpointing}): {error}"
        ) from error


def on_rank_0(tensors: Iterator[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor] | None:
    """Return copies of tensors in the CPU memory of rank 0; the other ranks drop each as it comes and get None."""
    if torch.distributed.get_rank() == 0:
        return {name: tensor.to("cpu", copy=True) for name, tensor in tensors}
    deque(tensors, maxlen=0)
    return None


def _of_all_ranks(value: Value) -> list[Value]:
    """Return what each rank gives here, in their order."""
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def _random_state() -> dict[str, Any]:
    """Return the state of every generator of this process, in types that load without running code."""
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
