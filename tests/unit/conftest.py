"""Pure tests: no Ray is there for them, whatever the tests before them had."""

import sys
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(autouse=True, scope="module")
def no_ray() -> None:
    """End the Ray that tests elsewhere share in this process; their next one starts another."""
    if (ray := sys.modules.get("ray")) is not None and ray.is_initialized():
        ray.shutdown()


@pytest.fixture
def quick_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compare files at `memory://` with their places at each look, ask again without a wait; forget them after it."""
    import fsspec

    from vsr1 import storage, stores

    monkeypatch.setattr(storage, "FRESH_S", 0.0)
    monkeypatch.setattr(stores, "WAITS_S", (0.0, 0.0))
    yield
    type(fsspec.filesystem("memory")).store.clear()


@pytest.fixture
def quick_cluster(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend a Ray whose pump asks twice again, without a pause."""
    from pretended_ray import PretendedRay

    from pipelines.stage import pump

    monkeypatch.setattr(pump, "PAUSES_S", (0.0, 0.0))
    return PretendedRay(monkeypatch)
