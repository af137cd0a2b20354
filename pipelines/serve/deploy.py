"""`vsr1 serve`: the application on the Ray that runs, or on a local one; `cluster/serve.yaml` names `application`."""

# Annotations are no strings here: Serve reads that of `application` to check the arguments of a configuration file.

from ray import serve

from pipelines.serve.agents.agents import Agents
from pipelines.serve.gateway.gateway import Gateway
from pipelines.serve.library.library import Library
from pipelines.serve.running import AGENT, declare, serve_until_interrupted, start_serve
from pipelines.stage.workers import resources
from vsr1.config import Config, ConfigError

APPLICATION = "vsr1"
NOTICE_S = 2.0  # between looks at a replica's health


def application(config: Config) -> serve.Application:
    """The bound application.

    Raises:
        ConfigError: no corpus is named.
    """
    settings = config.serve
    if not settings.corpora:
        raise ConfigError("serve.corpora names no corpus; say --corpus DIR, or serve.corpora.NAME.root=DIR")
    small = {"num_cpus": 0.1}  # they hand things on
    shared = {"health_check_period_s": NOTICE_S, "graceful_shutdown_timeout_s": settings.request_limit_s}
    library = Library.options(ray_actor_options=small, **shared).bind(config)
    agents = {
        name: Agents.options(
            name=AGENT + name,
            ray_actor_options=resources(config.cluster.rollout),
            max_ongoing_requests=settings.searches_a_replica,
            max_queued_requests=settings.waiting_searches,
            autoscaling_config={
                "min_replicas": settings.least_replicas,
                "max_replicas": settings.most_replicas,
                "target_ongoing_requests": max(1, settings.searches_a_replica // 2),
            },
            user_config={"checkpoint": str(checkpoint), "version": 0},
            **shared,
        ).bind(config, name, library)
        for name, checkpoint in config.served_models.items()
    }
    return Gateway.options(ray_actor_options=small, **shared).bind(settings, agents, library)  # type: ignore[attr-defined]


def serve_agent(config: Config, host: str, port: int) -> None:
    """Serve until interrupted; raises as `serve_until_interrupted` and `start_agent`."""

    def drain() -> None:
        serve.get_app_handle(APPLICATION).drain.remote().result()

    serve_until_interrupted(config, host, port, "/v1/search", lambda: start_agent(config, host, port), drain)


def start_agent(config: Config, host: str, port: int) -> None:
    """Deploy on the Ray that runs, and wait until it answers.

    Raises:
        ConfigError: as `application`. ServiceError: it does not start.
    """
    application(config)
    start_serve(host, port)
    declare(
        {
            "name": APPLICATION,
            "route_prefix": "/",
            "import_path": f"{__name__}:application",
            "args": config.model_dump(mode="json"),
        }
    )
