"""`vsr1 serve`: the application on the Ray that runs, or on a local one."""

from __future__ import annotations

from ray import serve

from pipelines.service.agents import Agents
from pipelines.service.gateway import Gateway
from pipelines.service.library import Library
from pipelines.service.running import deploy, serve_until_interrupted
from pipelines.services import resources
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
    """Serve until interrupted; raises as `serve_until_interrupted` and `application`."""
    serve_until_interrupted(config, host, port, "/v1/search", lambda: start_agent(config, host, port))


def start_agent(config: Config, host: str, port: int) -> None:
    """Deploy on the Ray that runs, and wait until it answers."""
    deploy(application(config), "vsr1", host, port)
