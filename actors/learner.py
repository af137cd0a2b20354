"""The learner group: DeepSpeed ranks as actors in one placement group, stepped together.

torch and DeepSpeed are imported in the ranks, not by who starts them.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.logs import log_to
from vsr1.config import Config
from vsr1.formats.dataset import DatasetFolder
from vsr1.rl.batch import BatchTotals, Example, LearnerError, batch_totals, rounds, split_over_ranks

if TYPE_CHECKING:
    import torch

    from vsr1.model.manifest import Manifest

DEATH_NOTICE_S = 2.0  # in which Ray knows that a process is gone, after others have lost their connection to it


class LearnerRankActor:
    """One rank. Construct all, then `setup` all at once with rank 0's address."""

    def __init__(self, config: Config, rank: int, log: Path | None = None) -> None:
        log_to(log)
        self._config, self._rank = config, rank

    def address(self) -> tuple[str, int]:
        """Host and a free port on it, for the process group (asked of rank 0)."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def setup(self, host: str, port: int) -> None:
        import torch

        from vsr1.rl.example_loss import load_vectors
        from vsr1.rl.learner import Learner

        config, ranks = self._config, self._config.grpo.learner.ranks
        os.environ.update(
            MASTER_ADDR=host, MASTER_PORT=str(port), RANK=str(self._rank), WORLD_SIZE=str(ranks), LOCAL_RANK="0"
        )
        if config.model.device == "cpu":  # else as many as `cluster.learner.cpus`, which Ray has set
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // ranks))
        torch.distributed.init_process_group("gloo" if config.model.device == "cpu" else "nccl")
        folder = DatasetFolder(config.data.root)
        vectors = load_vectors(folder, "train")
        self._learner = Learner(
            config.grpo, config.model, config.agent, vectors, temperature=config.rollout.temperature
        )

    def step(self, examples: list[Example], rounds: int, totals: BatchTotals, learning_rate: float) -> dict[str, float]:
        return self._learner.step(examples, rounds, totals, learning_rate)

    def open_transfer(self, host: str, port: int, world_size: int) -> None:
        """Join the NCCL group of the engines as its sender (rank 0 only); they join at the same time."""
        from vsr1.engine.transfer import WeightSender

        self._sender = WeightSender(host, port, world_size)

    def layout(self) -> list[tuple[str, tuple[int, ...], str]]:
        return self._learner.layout()

    def broadcast(self) -> Manifest:
        """Send what the stage trains through NCCL; all ranks gather, rank 0 sends and returns the manifest."""
        manifest: Manifest = {}
        if self._rank == 0:
            self._sender.send(self._recorded(manifest))
        else:
            for _ in self._learner.full_weights():
                pass
        return manifest

    def share(self) -> tuple[bytes, Manifest]:
        """CUDA IPC handles of what the stage trains, for an engine on rank 0's GPU; valid until the next call."""
        from vsr1.engine.transfer import share

        manifest: Manifest = {}
        self._shared = [(name, tensor.clone()) for name, tensor in self._recorded(manifest)]
        return share(self._shared), manifest

    def _recorded(self, manifest: Manifest) -> Iterator[tuple[str, torch.Tensor]]:
        from vsr1.model.manifest import record

        for name, tensor in self._learner.full_weights():
            if self._config.rollout.verify_push:
                manifest[name] = record(tensor)
            yield name, tensor

    def weights(self) -> tuple[bytes, Manifest] | None:
        """What rank 0 holds after all ranks have gathered; None elsewhere."""
        weights, manifest = self._learner.weights()
        return (weights, manifest if self._config.rollout.verify_push else {}) if self._rank == 0 else None

    def save(self, folder: Path) -> None:
        self._learner.save(folder)


LearnerRank: Any = ray.remote(LearnerRankActor)  # Any: the stubs of Ray give a handle no `.remote`


class LearnerGroup:
    """All ranks behind one object, held by the driver."""

    def __init__(self, config: Config, logs: Path | None = None) -> None:
        learner, need = config.grpo.learner, config.cluster.learner
        bundle = {"CPU": need.cpus, "memory": int(need.memory_gib * 2**30)}
        if need.gpus:
            bundle["GPU"] = need.gpus
        self.ranks, self._micro_tokens = learner.ranks, learner.micro_tokens
        self._group = placement_group([bundle] * learner.ranks, strategy="PACK")
        ray.get(self._group.ready())
        self._ranks = [
            LearnerRank.options(
                num_cpus=need.cpus,
                num_gpus=need.gpus,
                memory=bundle["memory"],
                scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=rank),
            ).remote(config, rank, logs and logs / f"learner-{rank}.log")
            for rank in range(learner.ranks)
        ]

    def setup(self) -> list[Any]:
        """Join the ranks and load the policy; returns references to wait for."""
        host, port = ray.get(self._ranks[0].address.remote())
        return [rank.setup.remote(host, port) for rank in self._ranks]

    def step(self, examples: list[Example], learning_rate: float) -> dict[str, float]:
        """One optimiser step on a batch; sums over ranks, maxima for names that end in `_max`.

        Args:
            learning_rate: of the backbone; the heads keep their ratio to it.
        """
        parts = split_over_ranks(examples, len(self._ranks))
        passes = rounds(parts, self._micro_tokens)
        totals = batch_totals(examples)
        answers = self._all(
            [
                rank.step.remote(part, passes, totals, learning_rate)
                for rank, part in zip(self._ranks, parts, strict=True)
            ]
        )
        merged: dict[str, float] = {}
        for name in sorted({name for answer in answers for name in answer}):
            values = [answer[name] for answer in answers if name in answer]
            is_maximum = name.endswith("_max") or name == "grad_norm"  # the norm is the same on every rank
            merged[name] = max(values) if is_maximum else sum(values)
        return merged

    def weights(self) -> ray.ObjectRef:
        """Reference to what the stage trains: safetensors bytes and their manifest."""
        return self._gathered("weights")

    def share(self) -> ray.ObjectRef:
        """Reference to CUDA IPC handles of what the stage trains, and their manifest."""
        return self._gathered("share")

    def open_transfer(self, engines: list[Any]) -> None:
        """Connect rank 0 and rollout workers by NCCL."""
        host, port = ray.get(self._ranks[0].address.remote())
        world = len(engines) + 1
        joining = [engine.join_transfer.remote(host, port, i + 1, world) for i, engine in enumerate(engines)]
        ray.get([self._ranks[0].open_transfer.remote(host, port, world), *joining])

    def layout(self) -> list[tuple[str, tuple[int, ...], str]]:
        """Key, shape and dtype of each tensor of a broadcast, in order."""
        return ray.get(self._ranks[0].layout.remote())

    def broadcast(self) -> ray.ObjectRef:
        """Send to all connected workers, which must be receiving; reference to the manifest."""
        return self._gathered("broadcast")

    def save(self, folder: Path) -> None:
        self._all([rank.save.remote(folder) for rank in self._ranks])

    def _all(self, answers: list[ray.ObjectRef]) -> list[Any]:
        """What the ranks answer, in order.

        Raises:
            LearnerError: a rank died; it is named, not the ranks that lost their connection to it.
        """
        try:
            return ray.get(answers)
        except ray.exceptions.RayError as error:
            for rank, answer in enumerate(answers):
                self._check_alive(rank, answer, error)
            raise

    def _check_alive(self, rank: int, answer: ray.ObjectRef, error: Exception) -> None:
        try:
            ray.get(answer, timeout=DEATH_NOTICE_S)
        except ray.exceptions.RayActorError as death:
            raise LearnerError(f"learner rank {rank} died, and the step with it: {death}") from error
        except (ray.exceptions.RayTaskError, ray.exceptions.GetTimeoutError):
            return  # it answers, or waits for another rank

    def close(self) -> None:
        for rank in self._ranks:
            ray.kill(rank)
        remove_placement_group(self._group)

    def _gathered(self, method: str) -> ray.ObjectRef:
        """Call all ranks, for each must join the gathering; reference to the answer of rank 0."""
        references = [getattr(rank, method).remote() for rank in self._ranks]
        return references[0]
