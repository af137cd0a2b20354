"""The learner group: DeepSpeed ranks as actors in one placement group, stepped together.

torch and DeepSpeed are imported in the ranks, not by who starts them. Examples go through the driver, clips do not:
each rank reads them from the store of its own node.
"""

from __future__ import annotations

import os
import pickle
import socket
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.clips import ClipStoreHandle, ClipStores, StoredClips
from actors.handles import Remote, arrived
from actors.logs import log_to
from vsr1.config import Config
from vsr1.rl.batch import Example, LearnerError, split_over_ranks
from vsr1.video.clips import ClipReference

if TYPE_CHECKING:
    import torch

    from vsr1.model.manifest import Manifest
    from vsr1.rl.flops import ModelFlops


class RankError(LearnerError):
    """Ranks that died, or gave no answer in time; the message names them."""


DEATH_NOTICE_S = 2.0  # in which Ray knows that a process is gone, after others have lost their connection to it


class LearnerRankActor:
    """One rank. Construct all, then `setup` all at once with rank 0's address."""

    def __init__(self, config: Config, rank: int, log: Path | None = None) -> None:
        log_to(log)
        self._config, self._rank = config, rank

    def node(self) -> str:
        """Return the id of the Ray node that this rank is on."""
        return str(ray.get_runtime_context().get_node_id())

    def address(self) -> tuple[str, int]:
        """Return this host and a free port on it, for the process group (asked of rank 0)."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def setup(self, host: str, port: int, store: ClipStoreHandle) -> ModelFlops:
        """Join the process group and load the policy; returns what its passes cost.

        Args:
            host: of rank 0, as is the port.
            store: of this rank's node.
        """
        import torch

        from vsr1.environments.registry import environment_of
        from vsr1.rl.learner import Learner

        config, ranks = self._config, self._config.grpo.learner.ranks
        os.environ.update(
            MASTER_ADDR=host, MASTER_PORT=str(port), RANK=str(self._rank), WORLD_SIZE=str(ranks), LOCAL_RANK="0"
        )
        if config.model.device == "cpu":  # else as many as `cluster.learner.cpus`, which Ray has set
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // ranks))
        torch.distributed.init_process_group("gloo" if config.model.device == "cpu" else "nccl")
        self._clips = StoredClips(store)
        vectors = environment_of(config).vectors(config)
        self._learner = Learner(
            config.grpo, config.model, config.agent, vectors, self._clips, temperature=config.rollout.temperature
        )
        return self._learner.flops

    def step(self, examples: list[Example], learning_rate: float) -> dict[str, float]:
        """Take one step on this rank's part (see `Learner.step`)."""
        self._clips.ask(reference for example in examples for reference in example.clips)
        numbers = self._learner.step(examples, learning_rate)
        self._clips.ask([])
        return numbers

    def logprobs(self, examples: list[Example]) -> list[list[float]]:
        """Return log-probs of this rank's part (see `Learner.logprobs`)."""
        self._clips.ask(reference for example in examples for reference in example.clips)
        values = self._learner.logprobs(examples)
        self._clips.ask([])
        return values

    def open_transfer(self, host: str, port: int, world_size: int) -> None:
        """Join the NCCL group of the engines as its sender (rank 0 only); they join at the same time."""
        from vsr1.engine.transfer import WeightSender

        self._sender = WeightSender(host, port, world_size)

    def layout(self) -> list[tuple[str, tuple[int, ...], str]]:
        """Return key, shape and dtype of each tensor of a broadcast, in order."""
        return self._learner.layout()

    def broadcast(self) -> Manifest:
        """Send what the stage trains through NCCL; all ranks gather, rank 0 sends and returns the manifest."""
        manifest: Manifest = {}
        tensors = self._recorded(manifest)
        if self._rank == 0:
            self._sender.send(tensors)
        else:
            deque(tensors, maxlen=0)
        return manifest

    def share(self) -> tuple[bytes, Manifest]:
        """Return CUDA IPC handles of what the stage trains, for an engine on rank 0's GPU; the next call ends them."""
        from vsr1.engine.transfer import share

        manifest: Manifest = {}
        self._shared = [(name, tensor.clone()) for name, tensor in self._recorded(manifest)]
        return share(self._shared), manifest

    def _recorded(self, manifest: Manifest) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield what the stage trains, and note each tensor in the manifest of rank 0 if pushes are checked."""
        from vsr1.model.manifest import record

        for name, tensor in self._learner.full_weights():
            if self._config.rollout.verify_push and self._rank == 0:
                manifest[name] = record(tensor)
            yield name, tensor

    def weights(self) -> tuple[bytes, Manifest] | None:
        """Return what the stage trains as safetensors bytes, and its manifest; None but on rank 0."""
        from safetensors.torch import save

        from vsr1.rl.learner import on_rank_0

        manifest: Manifest = {}
        state = on_rank_0(self._recorded(manifest))
        return None if state is None else (save(state), manifest)

    def save(self, folder: Path) -> None:
        """Write a checkpoint folder (see `Learner.save`)."""
        self._learner.save(folder)

    def save_state(self, folder: Path) -> None:
        """Write this rank's part of a state (see `Learner.save_state`)."""
        self._learner.save_state(folder)

    def load_state(self, folder: Path) -> None:
        """Go on from a state (see `Learner.load_state`)."""
        self._learner.load_state(folder)


class LearnerRankHandle(Protocol):
    """What a handle of a `LearnerRankActor` offers."""

    node: Remote[[], Any]
    address: Remote[[], Any]
    setup: Remote[[str, int, ClipStoreHandle], Any]
    step: Remote[[list[Example], float], Any]
    logprobs: Remote[[list[Example]], Any]
    open_transfer: Remote[[str, int, int], Any]
    layout: Remote[[], Any]
    broadcast: Remote[[], Any]
    share: Remote[[], Any]
    weights: Remote[[], Any]
    save: Remote[[Path], Any]
    save_state: Remote[[Path], Any]
    load_state: Remote[[Path], Any]
    __ray_call__: Any  # every actor has it


LearnerRank: Any = ray.remote(LearnerRankActor)  # Any: the stubs of Ray give a handle no `.remote`


class LearnerGroup:
    """All ranks behind one object, held by the driver; use it as a context manager.

    Args:
        clips: stores of the clips that examples name; each rank gets that of its own node.
        logs: folder of the ranks' logs.
    """

    def __init__(self, config: Config, clips: ClipStores, logs: Path | None = None) -> None:
        self._config, self._clips, self._logs = config, clips, logs
        self.ranks = config.grpo.learner.ranks
        self.starts = 0  # of all ranks
        self.members: list[LearnerRankHandle] = []
        self._stores: dict[str, ClipStoreHandle] = {}  # by node
        self._announced: set[ClipReference] = set()  # for the next step
        self._group: Any = None

    def __enter__(self) -> Self:
        """Start the ranks, join them and load the policy in each."""
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _start(self) -> None:
        self.starts += 1
        need = self._config.cluster.learner
        bundle = {"CPU": need.cpus, "memory": int(need.memory_gib * 2**30)}
        if need.gpus:
            bundle["GPU"] = need.gpus
        labels = [need.labels] * self.ranks if need.labels else None
        self._group = placement_group([bundle] * self.ranks, need.strategy.upper(), bundle_label_selector=labels)
        limit_s = self._config.fleet.start_s
        if not ray.wait([self._group.ready()], timeout=limit_s)[0]:
            raise LearnerError(f"no place for {self.ranks} learner ranks within {limit_s:g} s (fleet.start_s)")
        self.members = [
            LearnerRank.options(
                num_cpus=need.cpus,
                num_gpus=need.gpus,
                memory=bundle["memory"],
                scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=rank),
            ).remote(self._config, rank, self._logs and self._logs / f"learner-{rank}.log")
            for rank in range(self.ranks)
        ]
        nodes = self._all([rank.node.remote() for rank in self.members])
        self._stores = {node: self._clips.on(node, keep=True) for node in nodes}
        [(host, port)] = self._all([self.members[0].address.remote()])
        joining = zip(self.members, nodes, strict=True)
        [self._flops, *_] = self._all([rank.setup.remote(host, port, self._stores[node]) for rank, node in joining])

    def prefetch(self, references: Iterable[ClipReference]) -> None:
        """Let the stores of the ranks' nodes read clips of the next step; returns at once.

        A clip that cannot be read is an error of the step that wants it.
        """
        for reference in references:
            if reference not in self._announced:
                self._announced.add(reference)
                for store in self._stores.values():
                    store.load.remote(reference.video_id)

    def step(self, examples: list[Example], learning_rate: float) -> dict[str, float]:
        """Take one optimiser step on a batch; returns its numbers and how many bytes of examples went to the ranks.

        Args:
            learning_rate: of the backbone; the heads keep their ratio to it.

        Raises:
            LearnerError: a rank died, or met a number that is not finite.
            ClipError: a clip is not the one that was shown, or cannot be read.
        """
        self._announced.clear()
        parts = split_over_ranks(examples, self.ranks, self._flops)
        pairs = zip(self.members, parts, strict=True)
        [numbers, *_] = self._all([rank.step.remote(part, learning_rate) for rank, part in pairs])
        return numbers | {"example_bytes": float(sum(len(pickle.dumps(part)) for part in parts))}

    def logprobs(self, examples: list[Example]) -> list[list[float]]:
        """Return log-probs of the replies under the present weights, in order; errors as of `step`."""
        parts = split_over_ranks(examples, self.ranks, self._flops)
        pairs = zip(self.members, parts, strict=True)
        answers = self._all([rank.logprobs.remote(part) for rank, part in pairs])
        of_each = zip(chain(*parts), chain(*answers), strict=True)
        by_example = {id(example): logprobs for example, logprobs in of_each}
        return [by_example[id(example)] for example in examples]

    def weights(self) -> ray.ObjectRef:
        """Return a reference to what the stage trains: safetensors bytes and their manifest."""
        return self._gathered("weights")

    def share(self) -> ray.ObjectRef:
        """Return a reference to CUDA IPC handles of what the stage trains, and their manifest."""
        return self._gathered("share")

    def open_transfer(self, engines: list[Any]) -> None:
        """Connect rank 0 and rollout workers by NCCL."""
        host, port = ray.get(self.members[0].address.remote())
        world = len(engines) + 1
        joining = [engine.join_transfer.remote(host, port, i + 1, world) for i, engine in enumerate(engines)]
        ray.get([self.members[0].open_transfer.remote(host, port, world), *joining])

    def layout(self) -> list[tuple[str, tuple[int, ...], str]]:
        """Return key, shape and dtype of each tensor of a broadcast, in order."""
        return ray.get(self.members[0].layout.remote())

    def broadcast(self) -> ray.ObjectRef:
        """Send to all connected workers, which must be receiving; returns a reference to the manifest."""
        return self._gathered("broadcast")

    def save(self, folder: Path) -> None:
        """Write a checkpoint folder, which appears whole or not at all."""
        self._all([rank.save.remote(folder) for rank in self.members])

    def save_state(self, folder: Path) -> None:
        """Write all that the next step depends on into a folder that all ranks see."""
        self._all([rank.save_state.remote(folder) for rank in self.members])

    def load_state(self, folder: Path) -> None:
        """Go on from what `save_state` wrote, before the first step."""
        self._all([rank.load_state.remote(folder) for rank in self.members])

    def close(self) -> None:
        """End the ranks and give their place back; a second call does nothing."""
        for rank in self.members:
            ray.kill(rank)
        if self._group is not None:
            remove_placement_group(self._group)
        self.members, self._group = [], None

    def _all(self, answers: list[ray.ObjectRef]) -> list[Any]:
        """Return what the ranks answer, in order.

        Raises:
            RankError: a rank died, and is named, not the ranks that lost their connection to it; or some gave no answer
                within `fleet.learn_s`.
        """
        limit_s = self._config.fleet.learn_s
        try:
            return ray.get(answers, timeout=limit_s)
        except ray.exceptions.GetTimeoutError as error:
            silent = [str(rank) for rank, answer in enumerate(answers) if not arrived([answer])]
            raise RankError(
                f"no answer of learner rank {', '.join(silent)} within {limit_s:g} s (fleet.learn_s)"
            ) from error
        except ray.exceptions.RayError as error:
            for rank, answer in enumerate(answers):
                try:
                    ray.get(answer, timeout=DEATH_NOTICE_S)
                except ray.exceptions.RayActorError as death:
                    raise RankError(f"learner rank {rank} died, and the step with it: {death}") from error
                except (ray.exceptions.RayTaskError, ray.exceptions.GetTimeoutError):
                    continue  # it answers, or waits for another rank
            raise

    def _gathered(self, method: str) -> ray.ObjectRef:
        """Call all ranks, which gather together; returns a reference to the answer of rank 0."""
        references = [getattr(rank, method).remote() for rank in self.members]
        return references[0]
