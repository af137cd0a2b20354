"""One toy service for all tests of this folder."""

import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from shutil import copytree

import pytest
from ray import serve

from pipelines.evaluation.evaluate import evaluate
from pipelines.serve.deploy import start_agent
from pipelines.serve.gateway.keys import add_key
from vsr1.config import load_config

from .served import LIMITS, REPOSITORY, Served


@pytest.fixture(scope="package")
def served(
    tmp_path_factory: pytest.TempPathFactory, toy_data: Path, own_ray: Callable[[], AbstractContextManager[None]]
) -> Iterator[Served]:
    with own_ray():
        folder = tmp_path_factory.mktemp("service")
        paths = [
            f"run_dir={folder / 'run'}",
            f"data.root={folder / 'data'}",
            f"serve.corpora.toy.root={folder / 'data'}",
        ]
        copytree(toy_data, folder / "data")  # requests may add to it
        memory = ["cluster.rollout.memory_gib=1"]  # Ray offers what is free when it starts
        config = load_config(REPOSITORY / "configs" / "toy.yaml", ["eval.top_k=5", *memory, *paths])
        _, evaluated = evaluate(config)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        keys = folder / "keys.json"
        key = add_key(keys, "tests", per_minute=10_000, at_once=8)
        slow = add_key(keys, "slow", per_minute=1, at_once=1)
        other = add_key(keys, "others", per_minute=100, at_once=1)
        served = config.serve.model_copy(update={"key_file": keys, **LIMITS})
        start_agent(config.model_copy(update={"serve": served}), "127.0.0.1", port)
        yield Served(f"http://127.0.0.1:{port}", evaluated, key, slow, other)
        serve.shutdown()
