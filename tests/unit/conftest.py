"""Pure tests: no Ray is there for them, whatever the tests before them had."""

import sys

import pytest


@pytest.fixture(autouse=True, scope="module")
def no_ray() -> None:
    """End the Ray that tests elsewhere share in this process; their next one starts another."""
    if (ray := sys.modules.get("ray")) is not None and ray.is_initialized():
        ray.shutdown()
