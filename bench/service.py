"""The served agent under load, over loopback on a Ray of its own, every answer checked.

The clients are coroutines of this process, so they share the machine's cores with the service.
"""

from __future__ import annotations

import asyncio
import socket
from collections import defaultdict
from collections.abc import Callable
from itertools import cycle, islice
from typing import Any

import httpx2
import psutil
from ray import serve

from bench.load import LIMIT_S, load, trace
from pipelines.data.build import ensure_dataset
from pipelines.serve.deploy import start_agent
from pipelines.stage.connection import connect
from vsr1.config import Config
from vsr1.environments.registry import environment_of
from vsr1.settings.serving import CorpusConfig

LEVELS = (1, 8, 32, 128)  # searches at one time
LEAST = 96  # searches of a measurement
CORPUS = "bench"
LOOKS = 10  # at the memory
HOST = "127.0.0.1"
PARTS = ("ray::ServeReplica", "ray::Retrieval", "ray::ProxyActor", "VLLM")  # processes whose memory is watched


class Running:
    """A service of its own, and what its queries get when nothing else runs."""

    def __init__(self, config: Config, max_turns: int | None, waiting: int | None = None) -> None:
        connect(config)
        ensure_dataset(config)
        corpora = {CORPUS: CorpusConfig(root=config.data.root, split=config.eval.split)}
        changes: dict[str, Any] = {"corpora": corpora, "key_file": None}
        if waiting is not None:
            changes["waiting_searches"] = waiting
        self.config = config.model_copy(update={"serve": config.serve.model_copy(update=changes)})
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            port = probe.getsockname()[1]
        start_agent(self.config, HOST, port)
        self.url = f"http://{HOST}:{port}"
        queries = environment_of(config).evaluation_queries(config, config.eval.split)
        wanted = [query.task.query for query in queries if not query.skipped]
        self.bodies: list[dict[str, Any]] = [
            {"query": query, "max_turns": max_turns} for query in dict.fromkeys(wanted)
        ]
        self.traces = {body["query"]: trace(self.search(body)) for body in self.bodies}

    def search(self, body: dict[str, Any], limit_s: float = LIMIT_S) -> dict[str, Any]:
        """Return the answer to one search.

        Raises:
            httpx2.HTTPError: it failed.
        """
        answer = httpx2.post(f"{self.url}/v1/search", json=body, timeout=limit_s)
        answer.raise_for_status()
        result: dict[str, Any] = answer.json()
        return result

    def load(self, searches: int, at_once: int, watch: Callable[[int], None] = lambda count: None) -> dict[str, Any]:
        """Return what became of so many searches; `watch` gets the number of those that are over, after each."""
        bodies = list(islice(cycle(self.bodies), searches))
        return asyncio.run(load(self.url, bodies, at_once, self.traces, watch)).to_json()


def bench_serve(config: Config, requests: int, max_turns: int | None) -> dict[str, Any]:
    """Return answers a second and latencies by searches at one time, at twice the capacity, and memory over many.

    Args:
        requests: searches of the measurement of memory; 0 leaves it out.
        max_turns: of each search; None as the agent was trained.
    """
    room = max(LEVELS) - config.serve.searches_a_replica * config.serve.most_replicas
    service = Running(config, max_turns, waiting=max(room, config.serve.waiting_searches))
    settings = service.config.serve
    capacity = settings.searches_a_replica * settings.most_replicas + settings.waiting_searches
    figures: dict[str, Any] = {
        "queries": len(service.bodies),
        "max_turns": max_turns or config.agent.max_turns,
        "at_once": {level: service.load(max(LEAST, 3 * level), level) for level in LEVELS},
        "capacity": capacity,
        "twice_the_capacity": service.load(4 * capacity, 2 * capacity),
    }
    if requests:
        memory: dict[str, list[int]] = defaultdict(list)
        every = max(1, requests // LOOKS)

        def look(count: int) -> None:
            if count == 1 or count % every == 0:
                for part, mib in _resident_mib().items():
                    memory[part].append(mib)

        figures["many"] = service.load(requests, 32, look) | {"resident_mib": memory}
    serve.shutdown()
    return figures


def _resident_mib() -> dict[str, int]:
    """Return the resident memory of the service's processes by their names, in MiB."""
    sizes: dict[str, int] = defaultdict(int)
    for process in psutil.Process().children(recursive=True):
        try:
            title, size = next(iter(process.cmdline()), ""), process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
        if title.startswith(PARTS):
            sizes[title.removeprefix("ray::").split(".")[0]] += size // 2**20
    return sizes
