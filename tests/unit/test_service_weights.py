"""New weights of a served agent: a push that fails ends with searches refused, never with a mixture that answers."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from bench.toy.models import write_random_models
from bench.toy.tokenizer import train_tokenizer, vocabulary_texts
from pipelines.serve.agents.agents import AgentReplica
from pipelines.serve.agents.weights import Weights
from pipelines.serve.gateway.schema import SearchBody
from vsr1.config import Config
from vsr1.engine.gate import MixedWeightsError, PushError


class Engine:
    """Gets half of the weights, slowly."""

    weight_version = 0

    def __init__(self) -> None:
        self.pushing, self.finish = asyncio.Event(), asyncio.Event()

    async def push_weights(self, way: str, weights: Any, version: int, manifest: Any) -> None:
        assert (way, [Path(path).name for path in weights], version) == ("file", ["model.safetensors"], 1)
        self.pushing.set()
        await self.finish.wait()
        raise PushError("1 of 2 tensors did not arrive")


def test_searches_are_refused_after_a_push_that_failed(tmp_path: Path) -> None:
    policy, _ = write_random_models(tmp_path, train_tokenizer(vocabulary_texts(0, 200)))

    async def scene() -> None:
        replica = AgentReplica(Config(), "toy", library=None)
        engine = replica._engine = Engine()  # type: ignore[assignment]
        replica._weights = Weights(checkpoint=policy)

        async def search() -> None:
            async for _ in replica.search("s", SearchBody(query="a red circle"), "toy"):
                pass

        swap = asyncio.create_task(replica.reconfigure({"checkpoint": policy, "version": 1}))
        await engine.pushing.wait()
        waiting = asyncio.create_task(search())
        await asyncio.sleep(0)
        engine.finish.set()
        with pytest.raises(PushError):
            await swap
        for late in (waiting, search()):
            with pytest.raises(MixedWeightsError, match="1 of 2 tensors did not arrive"):
                await late

    asyncio.run(scene())
