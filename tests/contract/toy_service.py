"""A toy service on a real Ray Serve, for the tests of its doors; loaded with `runpy`, as tests are no package."""

import json
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from ray import serve

from pipelines.data.build import ensure_dataset
from pipelines.evaluate import evaluate
from pipelines.service.deploy import start_agent
from pipelines.service.keys import add_key
from vsr1.agent.trajectory import Trajectory
from vsr1.config import load_config

REPOSITORY = Path(__file__).parents[2]
QUERIES = 24
SMALL = ["toy.train=4", "toy.val=0", f"toy.test={QUERIES}", "data.splits=[train,test]", "eval.top_k=5"]
ORIGIN = "https://friend.example"  # whose scripts may ask
LIMITS = {"body_limit_kib": 64, "body_limit_s": 2.0, "resume_grace_s": 1.0, "cors_origins": [ORIGIN]}


@dataclass(frozen=True)
class Served:
    url: str
    evaluated: list[Trajectory]  # by the same policy, on the same corpus

    key: str
    slow_key: str  # one request a minute
    other_key: str

    def search(self, **body: Any) -> tuple[int, dict[str, Any]]:
        answer = httpx2.post(f"{self.url}/v1/search", json=body, timeout=120, headers={"X-API-Key": self.key})
        return answer.status_code, answer.json()

    def events(self, **body: Any) -> list[dict[str, Any]]:
        with httpx2.stream(
            "POST",
            f"{self.url}/v1/search",
            json=body | {"stream": True},
            timeout=120,
            headers={"Authorization": f"Bearer {self.key}"},
        ) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            return [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]

    def metric(self, name: str) -> dict[str, float]:
        """Values of a metric by its labels."""
        lines = httpx2.get(f"{self.url}/metrics", timeout=60).text.splitlines()
        found = [line.rsplit(" ", 1) for line in lines if line.startswith(name)]
        return {labels.removeprefix(name): float(value) for labels, value in found}

    def until_idle(self) -> None:
        deadline = time.monotonic() + 20
        while any(self.metric("vsr1_searches_now").values()):
            assert time.monotonic() < deadline, "a search nobody reads goes on"
            time.sleep(0.2)

    def raw(self, request: str) -> socket.socket:
        """A connection on which this was sent as it is."""
        host, port = self.url.removeprefix("http://").split(":")
        connection = socket.create_connection((host, int(port)), timeout=30)
        connection.sendall(request.encode())
        return connection


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("service")
    paths = [f"run_dir={folder / 'run'}", f"data.root={folder / 'data'}", f"serve.corpora.toy.root={folder / 'data'}"]
    memory = ["cluster.rollout.memory_gib=1"]  # Ray offers what is free when it starts
    config = load_config(REPOSITORY / "configs" / "toy.yaml", [*SMALL, *memory, *paths])
    ensure_dataset(config)
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
