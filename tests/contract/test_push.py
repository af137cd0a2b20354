"""A push, member by member: every real part of it but vLLM's own process and the learner's ranks."""

import pickle
from types import SimpleNamespace

import pytest
import ray

from actors.rollout import RolloutWorkerActor
from pipelines.stage.workers import Workers
from vsr1.engine.engine import PolicyEngine
from vsr1.engine.gate import PushError
from vsr1.settings.parts import EngineConfig

LAYOUT = [("head.weight", (2, 2), "float32")]
MANIFEST = {"head.weight": "what was sent"}


class Process:
    """Takes calls as vLLM does: keeps what came, and says which tensors of a manifest it lacks."""

    def __init__(self, lacks: tuple[str, ...]) -> None:
        self.lacks, self.calls = lacks, []

    async def collective_rpc(self, method: str, args: tuple):
        if method == "receive_weights":
            way, weights = args
            args = (way, [open(path, "rb").read() for path in weights] if way == "file" else weights)  # noqa: SIM115
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


@ray.remote(num_cpus=0)
class Worker(RolloutWorkerActor):
    def __init__(self, *lacks: str) -> None:
        tokenizer = SimpleNamespace(
            eos_token_id=1, get_vocab=lambda: {"<REFINE>": 2}, convert_tokens_to_ids=lambda token: 2, decode=str
        )
        self._process = Process(lacks)
        self._engine = PolicyEngine(self._process, SimpleNamespace(tokenizer=tokenizer), EngineConfig())

    async def state(self) -> tuple[list, int]:
        """The calls since this was asked last, and the version."""
        calls, self._process.calls = self._process.calls, []
        return calls, self._engine.weight_version


class Learners:
    """What `Workers.push` asks of a `LearnerGroup`."""

    ranks = 1

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


@pytest.fixture(scope="module")
def workers(ray_cluster: None) -> list:
    """Two whose weights arrive, and one whose do not."""
    return [Worker.remote(), Worker.remote(), Worker.remote("head.weight")]


def pushing(transfer: str, workers: list) -> Workers:
    return Workers(clips={}, rewards=[], rollouts=workers, transfer=transfer, pump=None)


@pytest.mark.parametrize(("transfer", "weights"), [("file", [b"safetensors"]), ("ipc", b"handles"), ("nccl", LAYOUT)])
def test_every_member_receives_is_checked_and_then_answers_with_the_version(workers, transfer: str, weights) -> None:
    learners = Learners()
    two = pushing(transfer, workers[:2])
    for version in (1, 2):
        two.push(learners, version)
        calls = [("receive_weights", transfer, weights), *[("reset",)] * 3, ("weight_faults", MANIFEST)]
        assert ray.get([worker.state.remote() for worker in workers[:2]]) == [(calls, version)] * 2
    assert learners.joined == ([2] if transfer == "nccl" else [])


@pytest.mark.parametrize("transfer", ["file", "nccl"])
def test_a_member_that_lacks_a_tensor_is_named_and_keeps_its_version(workers, transfer: str) -> None:
    with pytest.raises(
        PushError, match=r"rollout worker 1 failed in the push of weights 7: .*head\.weight: other valu"
    ):
        pushing(transfer, workers[1:]).push(Learners(), 7)
    _, version = ray.get(workers[2].state.remote())
    assert version == 0


def test_a_member_that_is_dead_is_named(workers) -> None:
    dead = Worker.remote()
    ray.kill(dead)
    with pytest.raises(PushError, match="rollout worker 1 failed in the push of weights 1: ActorDiedError"):
        pushing("file", [workers[0], dead]).push(Learners(), 1)
