"""`vsr1 serve`: the application on the Ray that runs, or on a local one."""

from __future__ import annotations

import time

from ray import serve

from pipelines.machine import check_port
from pipelines.service.agents import Agents
from pipelines.service.gateway import Gateway
from pipelines.service.library import Library
from pipelines.services import connect, resources
from vsr1.config import Config, ConfigError


def application(config: Config) -> serve.Application:
    """The bound application.

    Raises:
        ConfigError: no corpus is named.
    """
    settings = config.serve
    if not settings.corpora:
        raise ConfigError("serve.corpora names no corpus; say --corpus DIR, or serve.corpora.NAME.root=DIR")
    need = resources(config.cluster.rollout)
    small = {"num_cpus": 0.1}  # they hand things on
    library = Library.options(ray_actor_options=small).bind(config)
    agents = Agents.options(
        ray_actor_options=need,
        max_ongoing_requests=settings.searches_a_replica,
        max_queued_requests=settings.waiting_searches,
        autoscaling_config={
            "min_replicas": settings.least_replicas,
            "max_replicas": settings.most_replicas,
            "target_ongoing_requests": max(1, settings.searches_a_replica // 2),
        },
        graceful_shutdown_timeout_s=settings.request_limit_s,
    ).bind(config, library)
    return Gateway.options(ray_actor_options=small).bind(settings, agents, library)  # type: ignore[attr-defined]


def serve_agent(config: Config, host: str, port: int) -> None:
    """Serve until interrupted.

    Raises:
        MachineError: the port is taken.
    """
    check_port(port)
    connect(config)
    start_agent(config, host, port)
    print(f"POST http://{host}:{port}/v1/search", flush=True)
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        serve.shutdown()


def start_agent(config: Config, host: str, port: int) -> None:
    """Deploy on the Ray that runs, and wait until it answers."""
    serve.start(http_options={"host": host, "port": port}, logging_config={"enable_access_log": False})
    serve.run(application(config), name="vsr1", route_prefix="/")
