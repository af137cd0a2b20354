"""One engine for all tests of this folder. `test_latents.py` comes first: `test_parity.py` pushes other weights."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vsr1.engine.engine import PolicyEngine
from vsr1.settings.parts import EngineConfig

OnEngine = Callable[[Callable[[PolicyEngine], Awaitable[Any]]], Any]


@pytest.fixture(scope="package")
def on_engine(policy_folder: Path) -> Iterator[OnEngine]:
    """Runs a coroutine function that takes the engine."""
    with asyncio.Runner() as runner:
        engine = runner.run(PolicyEngine.start(policy_folder, EngineConfig(latent_slots=7, videos_per_prompt=2)))
        try:
            yield lambda play: runner.run(play(engine))
        finally:
            engine.shutdown()
