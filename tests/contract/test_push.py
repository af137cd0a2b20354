"""A push, member by member: every real part of it but vLLM's own process and the learner's ranks."""

import pickle
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from actors.rollout import RolloutWorkerActor
from pipelines.stage.fleet import RolloutFleet
from pipelines.stage.watch import Watch
from vsr1.config import Config
from vsr1.engine.engine import PolicyEngine
from vsr1.fleet import FleetError
from vsr1.model.manifest import Manifest, TensorRecord
from vsr1.settings.parts import EngineConfig

LAYOUT = [("head.weight", (2, 2), "float32")]
MANIFEST: Manifest = {"head.weight": TensorRecord((2, 2), "float32", 5, None)}


class Process:
    """Takes calls as vLLM does: keeps what came, and says which tensors of a manifest it lacks."""

    errored = False

    def __init__(self, lacks: tuple[str, ...]) -> None:
        self.lacks, self.calls = lacks, []

    async def collective_rpc(self, method: str, args: tuple):
        if method == "receive_weights":
            way, weights = args
            args = (way, [open(path, "rb").read() for path in weights] if way == "file" else weights)  # noqa: SIM115
        if method == "write_weights":
            Path(args[1]).write_bytes(b"of a peer")
            args = (pickle.loads(args[0]),)
        if method == "weight_faults":
            args = (pickle.loads(args[0]),)
        self.calls.append((method, *args))
        return [[f"{name}: other values" for name in self.lacks]]

    async def reset_mm_cache(self) -> None:
        self.calls.append(("reset",))

    async def reset_encoder_cache(self) -> None:
        self.calls.append(("reset",))

    async def reset_prefix_cache(self) -> bool:
        self.calls.append(("reset",))
        return True


@ray.remote(num_cpus=0, concurrency_groups={"health": 2})
class Worker(RolloutWorkerActor):
    def __init__(self, *lacks: str) -> None:
        tokenizer = SimpleNamespace(
            eos_token_id=1, get_vocab=lambda: {"<REFINE>": 2}, convert_tokens_to_ids=lambda token: 2, decode=str
        )
        self._process = Process(lacks)
        self._engine = PolicyEngine(self._process, SimpleNamespace(tokenizer=tokenizer), EngineConfig())

    async def start(self, clips: dict) -> None:
        self._engine.signs = 0

    async def probe(self) -> None:
        """A sign of life."""

    async def stop(self) -> None:
        """Nothing has to end."""

    async def state(self) -> tuple[list, int]:
        """The calls since this was asked last, and the version."""
        calls, self._process.calls = self._process.calls, []
        return calls, self._engine.weight_version


class Learners:
    """What a push asks of a `LearnerGroup`."""

    ranks = starts = 1

    def __init__(self) -> None:
        self.joined: list[int] = []  # engines

    def weights(self) -> ray.ObjectRef:
        return ray.put((b"safetensors", MANIFEST))

    def share(self) -> ray.ObjectRef:
        return ray.put((b"handles", MANIFEST))

    def open_transfer(self, workers: list) -> None:
        self.joined.append(len(workers))

    def layout(self) -> list:
        return LAYOUT

    def broadcast(self) -> ray.ObjectRef:
        return ray.put(MANIFEST)


class Fleet(RolloutFleet):
    """A fleet of workers that were started before."""

    def __init__(self, folder: Path, transfer: str, workers: list, restarts: int) -> None:
        settings = {"restarts_per_hour": restarts, "probe_s": 60.0}
        config = Config(run_dir=folder, rollout={"workers": len(workers)}, fleet=settings)
        config.rollout.transfer = transfer
        self.workers = {f"rollout-{i}": worker for i, worker in enumerate(workers)}
        self.told: list[dict] = []
        self.watch = Watch(config.fleet)
        super().__init__(config, self.workers.__getitem__, lambda node: {}, self.watch, self.write)

    def renew(self, name: str) -> None:
        """Let the next start of a member be that of a new worker."""
        self.workers[name] = Worker.remote()

    def write(self, kind: str, **fields) -> None:
        self.told.append({"kind": kind, **fields})


@pytest.fixture(scope="module")
def good(ray_cluster: None) -> list:
    """Two workers at which all tensors arrive."""
    return [Worker.remote(), Worker.remote()]


@pytest.fixture
def start(ray_cluster: None, tmp_path: Path) -> Iterator[Callable[..., Fleet]]:
    """Starts a fleet of workers, which outlive it."""
    watches: list[Watch] = []

    def begin(transfer: str, *workers: Any, restarts: int = 0) -> Fleet:
        fleet = Fleet(tmp_path, transfer, list(workers), restarts)
        watches.append(fleet.watch)
        fleet.start()
        ray.get([worker.state.remote() for worker in workers])  # what tests before have left
        return fleet

    yield begin
    for watch in watches:
        watch.stop()


def states(fleet: Fleet) -> list:
    return ray.get([member.handle.state.remote() for member in fleet.members])


@pytest.mark.parametrize(("transfer", "weights"), [("file", [b"safetensors"]), ("ipc", b"handles"), ("nccl", LAYOUT)])
def test_every_member_receives_is_checked_and_then_answers_with_the_version(
    start, good: list, transfer: str, weights
) -> None:
    learners = Learners()
    fleet = start(transfer, *good)
    for version in (1, 2):
        fleet.push(learners, version)
        fleet.settle()
        calls = [("receive_weights", transfer, weights), *[("reset",)] * 3, ("weight_faults", MANIFEST)]
        assert states(fleet) == [(calls, version)] * 2
    assert learners.joined == ([2] if transfer == "nccl" else [])


@pytest.mark.parametrize("transfer", ["file", "nccl"])
def test_a_member_that_lacks_a_tensor_is_named_and_plays_no_more(start, good: list, transfer: str) -> None:
    fleet = start(transfer, good[0], Worker.remote("head.weight"))
    fleet.push(Learners(), 7)
    fleet.settle()
    assert [member.name for member in fleet.members] == ["rollout-0"]
    [fault] = [event for event in fleet.told if event["kind"] == "fault"]
    assert fault["member"] == "rollout-1" and "head.weight: other values" in fault["reason"]
    assert {fleet.pick().name for _ in range(4)} == {"rollout-0"}


@pytest.mark.chaos
def test_who_missed_a_broadcast_takes_the_weights_of_another_member(start, good: list) -> None:
    fleet = start("nccl", good[0], Worker.remote(), restarts=1)
    fleet.push(Learners(), 3)
    fleet.settle()
    states(fleet)
    ray.kill(fleet.members[1].handle)
    fleet.renew("rollout-1")
    while not any(event["kind"] == "healed" for event in fleet.told):
        assert [event["kind"] for event in fleet.told if event["kind"] != "serving"] in ([], ["fault"]), fleet.told
        fleet.tick()
        time.sleep(0.05)
    (given, _), (calls, version) = states(fleet)
    assert given == [("write_weights", MANIFEST)]
    assert calls == [("receive_weights", "file", [b"of a peer"]), *[("reset",)] * 3, ("weight_faults", MANIFEST)]
    assert version == 3


def test_weights_that_arrive_nowhere_end_the_stage_with_every_reason(start) -> None:
    fleet = start("file", Worker.remote("head.weight"), Worker.remote("head.weight"))
    fleet.push(Learners(), 7)
    with pytest.raises(FleetError, match=r"rollout-0: PushError: 1 of 1 .*head\.weight.*rollout-1: PushError"):
        fleet.settle()
