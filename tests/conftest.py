"""Fixtures shared by all tiers."""

import os
from collections.abc import Iterator

import pytest
import ray
from hypothesis import settings

# How long an example takes depends on what else the machine does; pytest-timeout ends what hangs.
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")

# Ray gives its workers the niceness 15: with another test busy beside them they would hardly run at all.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (Ray's own spelling)

SLOWEST = (  # a minute or more each
    "test_stages.py", "test_learner_ranks.py", "test_replay.py", "test_engine_latents.py", "test_sft_resume.py",
    "test_data_steps.py", "test_evaluation.py", "test_data_build.py", "test_service_models.py", "test_service_api.py",
    "test_service_library.py", "test_service.py", "test_service_deploy.py", "test_service_page.py",
    "test_engine_parity.py", "test_bench.py", "test_learner.py", "test_teacher_engine.py", "test_retriever.py",
    "test_retrieval_actors.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow files first: xdist gives files out in this order, and the last one must not keep a single worker busy."""
    items.sort(key=lambda item: SLOWEST.index(item.path.name) if item.path.name in SLOWEST else len(SLOWEST))


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """A small local Ray of our own, gone before the next module; never joins a cluster that is already running."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, namespace="vsr1-tests", log_to_driver=False)
    yield
    ray.shutdown()
