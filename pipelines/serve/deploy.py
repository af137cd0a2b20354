"""`vsr1 serve` and `vsr1 retriever`: their applications on the Ray that runs, or on a local one.

`cluster/serve.yaml` names `application`.
"""

# Annotations are no strings here: Serve reads that of an application to check the arguments of a configuration file.

from collections.abc import Callable
from typing import Any

from ray import serve

from actors.places import resources
from pipelines.serve.agents.agents import Agents
from pipelines.serve.checks import check_served
from pipelines.serve.gateway.app import HttpGateway
from pipelines.serve.gateway.words import PromptWords
from pipelines.serve.library.library import FilmLibrary, Library, Retrieval
from pipelines.serve.running import AGENT, declare, serve_until_interrupted, start_serve
from vsr1.config import Config, ConfigError
from vsr1.environments.registry import environment_of
from vsr1.search.prompts import agent_prompt
from vsr1.settings.serving import CorpusConfig

APPLICATION = "vsr1"
NOTICE_S = 2.0  # between looks at a replica's health
RETRIEVE_BODY_KIB, RETRIEVE_BODY_S = 1 << 20, 600.0  # vectors and latents are long


def application(config: Config) -> serve.Application:
    """Return the bound application of the agent.

    Raises:
        ConfigError: no corpus is named.
    """
    return bind(config, Agents)


def retrieval(config: Config) -> serve.Application:
    """Return the bound application that retrieves from corpora and has no agent; raise as `application`."""
    return bind(config, None)


def bind(config: Config, agent: Any) -> serve.Application:
    """Return the application whose searches are played by a deployment with the interface of `AgentReplica`, if any."""
    settings, small = config.serve, {"num_cpus": 0.1}  # they hand things on
    if not settings.corpora:
        raise ConfigError("serve.corpora names no corpus; say --corpus DIR, or serve.corpora.NAME.root=DIR")
    shared = {"health_check_period_s": NOTICE_S, "graceful_shutdown_timeout_s": settings.request_limit_s}
    asks = agent is not None and not environment_of(config).has_corpus
    kind = FilmLibrary if asks else Library if agent else Retrieval
    library = kind.options(ray_actor_options=small, **shared).bind(config)
    agents = {
        name: agent.options(
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
        for name, checkpoint in (config.served_models if agent else {}).items()
    }
    system, most = agent_prompt(config.agent), config.rollout.engine.max_model_len
    words = {name: PromptWords(folder, system, most) for name, folder in config.served_models.items()}
    gateway = HttpGateway.options(ray_actor_options=small, **shared)  # type: ignore[attr-defined]
    return gateway.bind(settings, agents, library, words, asks)


def serve_agent(config: Config, host: str, port: int) -> None:
    """Serve until interrupted; raise as `check_served`, `serve_until_interrupted` and `start_agent`."""
    check_served(config)
    url = address(host, port)
    door = "search" if environment_of(config).has_corpus else "ask"
    where = [f"API: {url}/v1/{door}, described at {url}/docs", f"page: {url}/"]
    serve_until_interrupted(config, port, lambda: start_agent(config, host, port, tell=_print), where, _drain)


def serve_retriever(config: Config, split: str, host: str, port: int) -> None:
    """Serve the search over a split of `data.root` until interrupted; raise as `serve_agent`."""
    config = retriever_config(config, split)
    check_served(config, agents=False)
    where = [f"POST {address(host, port)}/retrieve"]
    serve_until_interrupted(config, port, lambda: start_agent(config, host, port, retrieval, _print), where, _drain)


def address(host: str, port: int) -> str:
    """Return where a browser on this machine finds what listens at a host, which may stand for all addresses."""
    name = "127.0.0.1" if host == "0.0.0.0" else "[::1]" if host == "::" else f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}"


def _drain() -> None:
    serve.get_app_handle(APPLICATION).drain.remote().result()


def _print(line: str) -> None:
    print(line, flush=True)


def retriever_config(config: Config, split: str) -> Config:
    """Return the configuration that serves one split of `data.root`, and takes bodies as long as vectors make them."""
    settings = config.serve
    changes = {
        "corpora": {split: CorpusConfig(root=config.data.root, split=split)},
        "body_limit_kib": max(settings.body_limit_kib, RETRIEVE_BODY_KIB),
        "body_limit_s": max(settings.body_limit_s, RETRIEVE_BODY_S),
    }
    return config.model_copy(update={"serve": settings.model_copy(update=changes)})


def start_agent(
    config: Config,
    host: str,
    port: int,
    build: Callable[[Config], serve.Application] = application,
    tell: Callable[[str], None] = lambda line: None,
) -> None:
    """Deploy on the Ray that runs, and wait until it answers.

    Args:
        host: it answers under this name too.
        build: which application; Serve imports it by its name.
        tell: gets lines on what is waited for.

    Raises:
        ConfigError: as `application`. ServiceError: it does not start.
    """
    hosts = [*config.serve.hosts, host]
    config = config.model_copy(update={"serve": config.serve.model_copy(update={"hosts": hosts})})
    build(config)
    start_serve(host, port)
    described = {
        "name": APPLICATION,
        "route_prefix": "/",
        "import_path": f"{build.__module__}:{build.__name__}",
        "args": config.model_dump(mode="json"),
    }
    declare(described, tell)
