"""The served agent under load and under kills, over loopback on a Ray of its own, every answer checked.

The clients are coroutines of this process, so they share the machine's cores with the service.
"""

from __future__ import annotations

import asyncio
import os
import platform
import signal
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import cycle, islice
from typing import Any

import httpx2
import psutil
import ray
from ray import serve

from bench.load import load, trace
from pipelines.data.build import ensure_dataset
from pipelines.machine.resources import cores
from pipelines.serve.deploy import APPLICATION, start_agent
from pipelines.serve.library.library import node_id
from pipelines.serve.running import AGENT, replica_pids
from pipelines.stage.connection import connect
from pipelines.stage.tasks import evaluation_queries
from vsr1.config import Config
from vsr1.settings.serving import CorpusConfig

LEVELS = (1, 8, 32, 128)  # searches at one time
LEAST = 96  # searches of a measurement
CORPUS = "bench"
LOOKS = 10  # at the memory
HOST = "127.0.0.1"


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
        found = evaluation_queries(config, config.eval.split)
        queries = dict.fromkeys(query.task.query for query in found if not query.skipped)
        self.bodies: list[dict[str, Any]] = [{"query": query, "max_turns": max_turns} for query in queries]
        self.traces = {body["query"]: trace(self.ask(body)) for body in self.bodies}

    def ask(self, body: dict[str, Any]) -> dict[str, Any]:
        answer = httpx2.post(f"{self.url}/v1/search", json=body, timeout=300)
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found

    def load(self, searches: int, at_once: int, watch: Callable[[int], None] = lambda done: None) -> dict[str, Any]:
        bodies = list(islice(cycle(self.bodies), searches))
        return asyncio.run(load(self.url, bodies, at_once, self.traces, watch)).to_json()


def bench_serve(config: Config, requests: int, max_turns: int | None) -> dict[str, Any]:
    """Answers a second and latencies by searches at one time, at twice the capacity, and memory over many requests.

    Args:
        requests: searches of the measurement of memory; 0 leaves it out.
        max_turns: of each search; None as the agent was trained.
    """
    settings = config.serve
    room = max(LEVELS) - settings.searches_a_replica * settings.most_replicas
    service = Running(config, max_turns, waiting=max(room, settings.waiting_searches))
    took = service.config.serve
    capacity = took.searches_a_replica * took.most_replicas + took.waiting_searches
    found: dict[str, Any] = {
        "bench": "serve",
        "cores": cores(),
        "cpu": platform.machine(),
        "queries": len(service.bodies),
        "max_turns": max_turns or config.agent.max_turns,
        "at_once": {level: service.load(max(LEAST, 3 * level), level) for level in LEVELS},
        "capacity": capacity,
        "twice_the_capacity": service.load(4 * capacity, 2 * capacity),
    }
    if requests:
        memory: dict[str, list[int]] = defaultdict(list)
        every = max(1, requests // LOOKS)

        def look(done: int) -> None:
            if done == 1 or done % every == 0:
                for part, mib in resident_mib().items():
                    memory[part].append(mib)

        found["many"] = service.load(requests, 32, look) | {"resident_mib": dict(memory)}
    serve.shutdown()
    return found


def bench_faults(config: Config, max_turns: int | None) -> dict[str, Any]:
    """Parts of the service killed while 32 searches run at one time: what the searches got, and how long until the
    service is ready and answers again."""
    service = Running(config, max_turns)
    library = serve.get_deployment_handle("library", APPLICATION)

    def retrieval() -> Any:
        return library.parts.remote(node_id()).result()[CORPUS][0]

    def shard() -> Any:
        return next(iter(ray.get(retrieval().shards.remote()).values()))

    def replica(part: str) -> int:
        return replica_pids(APPLICATION)[part][0]

    kills: dict[str, Callable[[], Callable[[], Any]]] = {  # each finds its victim first
        "nothing": lambda: lambda: None,
        "shard": lambda: _killer(shard()),
        "retrieval service": lambda: _killer(retrieval()),
        "agent": lambda: _ender(replica(AGENT + config.serve.model)),
        "library": lambda: _ender(replica("library")),
    }
    found = {part: _under_kill(service, victim()) for part, victim in kills.items()}
    serve.shutdown()
    return {"bench": "faults", "cores": cores(), "cpu": platform.machine(), "at_once": 32, "killed": found}


def resident_mib() -> dict[str, int]:
    """Resident memory of the processes that this one started, by their names, in MiB."""
    found: dict[str, int] = defaultdict(int)
    for process in psutil.Process().children(recursive=True):
        try:
            name, size = process.cmdline(), process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
        title = name[0] if name else ""
        if title.startswith(("ray::ServeReplica", "ray::Retrieval", "ray::ProxyActor", "VLLM")):
            found[title.removeprefix("ray::").split(".")[0]] += size // 2**20
    return dict(found)


def _under_kill(service: Running, kill: Callable[[], Any]) -> dict[str, Any]:
    recovered: list[float] = []

    def kill_and_wait() -> None:
        kill()
        began = time.perf_counter()
        while not _answers(service):
            time.sleep(0.1)
        recovered.append(time.perf_counter() - began)

    waiting = threading.Timer(1.0, kill_and_wait)
    waiting.start()
    tally = service.load(LEAST, 32)
    waiting.join()
    return tally | {"ready_again_s": round(recovered[0], 2)}


def _answers(service: Running) -> bool:
    try:
        if httpx2.get(f"{service.url}/readyz", timeout=60).status_code != 200:
            return False
        body = service.bodies[0]
        return httpx2.post(f"{service.url}/v1/search", json=body, timeout=60).status_code == 200
    except httpx2.TransportError:
        return False


def _killer(actor: Any) -> Callable[[], Any]:
    return lambda: ray.kill(actor, no_restart=False)


def _ender(pid: int) -> Callable[[], Any]:
    return lambda: os.kill(pid, signal.SIGKILL)
