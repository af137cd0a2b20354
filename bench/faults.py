"""Parts of the service killed under load: what the searches get, and how long until it answers again."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import httpx2
import ray
from ray import serve

from bench.measure import Rounds
from bench.service import CORPUS, LEAST, Running
from pipelines.serve.deploy import APPLICATION
from pipelines.serve.library.library import node_id
from pipelines.serve.running import AGENT, replica_pids
from vsr1.config import Config

AT_ONCE = 32  # searches
KILL_AFTER_S = 1.0
PROBE_LIMIT_S = 60.0  # of a request that asks whether the service answers again


def bench_faults(config: Config, max_turns: int | None) -> dict[str, Any]:
    """Return, for each part killed under load, what the searches got and the seconds until the service answered again.

    Args:
        max_turns: of each search; None as the agent was trained.
    """
    service = Running(config, max_turns)
    library = serve.get_deployment_handle("library", APPLICATION)

    def retrieval() -> Any:
        return library.parts.remote(node_id()).result()[CORPUS][0]

    def kill(actor: Any) -> Callable[[], None]:
        return partial(ray.kill, actor, no_restart=False)

    def end(deployment: str) -> Callable[[], None]:
        return partial(os.kill, replica_pids(APPLICATION)[deployment][0], signal.SIGKILL)

    kills: dict[str, Callable[[], Callable[[], None]]] = {  # each looks for its victim before the load begins
        "nothing": lambda: lambda: None,
        "shard": lambda: kill(next(iter(ray.get(retrieval().shards.remote()).values()))),
        "retrieval service": lambda: kill(retrieval()),
        "agent": lambda: end(AGENT + config.serve.model),
        "library": lambda: end("library"),
    }
    outcomes = {part: _under_kill(service, victim()) for part, victim in kills.items()}
    serve.shutdown()
    return {"at_once": AT_ONCE, "killed": outcomes}


def _under_kill(service: Running, kill: Callable[[], None]) -> dict[str, Any]:
    taken = Rounds()

    def kill_and_wait() -> None:
        kill()
        with taken.time("ready_again"):
            while not _answers(service):
                time.sleep(0.1)

    killer = threading.Timer(KILL_AFTER_S, kill_and_wait)
    killer.start()
    outcome = service.load(LEAST, AT_ONCE)
    killer.join()
    return outcome | {"ready_again_s": taken.median("ready_again")}


def _answers(service: Running) -> bool:
    try:
        httpx2.get(f"{service.url}/readyz", timeout=PROBE_LIMIT_S).raise_for_status()
        service.search(service.bodies[0], PROBE_LIMIT_S)
    except httpx2.HTTPError:
        return False
    return True
