"""Fixtures shared by all tiers."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray
from hypothesis import settings
from ray.util import list_named_actors
from xdist.scheduler import LoadScopeScheduling

# How long an example takes depends on what else the machine does; pytest-timeout ends what hangs.
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")

# Toy models are too small to share out: on a busy machine threads only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Ray gives its workers the niceness 15: with another test busy beside them they would hardly run at all.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (Ray's own spelling)

NAMESPACE = "vsr1-tests"  # of actors in the Ray that the tests of a process share

SLOWEST = (  # half a minute or more each
    "run", "service", "library", "head", "test_sft_resume", "test_bench_loop", "engine", "test_evaluation",
    "test_learner_ranks", "nodes", "test_fleet_actors", "test_teacher_engine", "test_data_build",
    "test_retrieval_actors", "test_report_browser", "test_selftest", "test_bench", "test_push",
)  # fmt: skip


def group(nodeid: str) -> str:
    """What one worker runs: a file, or a folder whose tests share what its `conftest.py` starts."""
    file = Path(nodeid.partition("::")[0])
    is_shared = (Path(__file__).parents[1] / file.parent / "__init__.py").exists()
    return file.parent.name if is_shared else file.stem


class ByGroup(LoadScopeScheduling):  # xdist's own groups are marks, which it does not find with pytest 9
    def _split_scope(self, nodeid: str) -> str:
        return group(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByGroup:
    return ByGroup(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow ones first: xdist gives groups out in this order, and the last one must not keep a single worker busy."""
    order = {name: place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: order.get(group(item.nodeid), len(SLOWEST)))


@contextmanager
def local_ray() -> Iterator[None]:
    """Have the small local Ray of this process, which starts at its first use and never joins a cluster that runs.

    Named actors that are left at the end of the block are killed; the others end with their handles.
    """
    if not ray.is_initialized():
        ray.init(address="local", num_cpus=2, include_dashboard=False, namespace=NAMESPACE, log_to_driver=False)
    try:
        yield
    finally:
        for name in list_named_actors() if ray.is_initialized() else ():
            ray.kill(ray.get_actor(name))


@pytest.fixture(scope="session")
def own_ray() -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """The Ray that the tests of this process share, for a `with`."""
    yield local_ray
    ray.shutdown()


@pytest.fixture(scope="module")
def ray_cluster(own_ray: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """The Ray that the tests of this process share, without the actors of other modules."""
    with own_ray():
        yield
