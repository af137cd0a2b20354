"""What leaves a rollout worker when its engine fails."""

import asyncio
import pickle
from types import SimpleNamespace
from typing import Any

import pytest

from actors.rollout import RolloutWorkerActor
from vsr1.config import Config
from vsr1.engine.gate import PushError

VllmError = type("EngineGenerateError", (Exception,), {"__module__": "vllm.v1.engine.exceptions"})


def worker_whose_pushes_raise(error: Exception) -> RolloutWorkerActor:
    async def push_weights(*args: Any) -> None:
        raise error

    worker = RolloutWorkerActor(Config(), {})
    worker._engine = SimpleNamespace(push_weights=push_weights, is_dead=False)
    return worker


def test_the_driver_needs_no_package_of_the_engine_to_take_its_errors() -> None:
    worker = worker_whose_pushes_raise(VllmError("a request was refused"))
    with pytest.raises(RuntimeError, match=r"^EngineGenerateError: a request was refused$") as raised:
        asyncio.run(worker.push("ipc", (b"", {}), 1))
    assert b"vllm" not in pickle.dumps(raised.value)


def test_errors_of_our_own_keep_their_class() -> None:
    with pytest.raises(PushError, match="the head"):
        asyncio.run(worker_whose_pushes_raise(PushError("the head")).push("ipc", (b"", {}), 1))


def test_a_worker_without_an_engine_says_so() -> None:
    with pytest.raises(RuntimeError, match="no engine"):
        asyncio.run(RolloutWorkerActor(Config(), {}).push("ipc", (b"", {}), 1))
