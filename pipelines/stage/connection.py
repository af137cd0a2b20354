"""How a stage comes to Ray: it joins the cluster that the configuration or the job names, or starts a local one.

What Ray has to say goes to Python's root logger, never to the console. Ray is imported in the functions, because some
of its settings count only before its import.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from typing import Any

from pipelines.machine.resources import check_port, ray_address
from vsr1.config import Config
from vsr1.storage import default_cache, keep_budget, url_of

RAY_LOGGERS = ("ray", "ray.data", "ray.serve")  # those that Ray gives a handler of their own


def keep_ray_local(address: str | None) -> None:
    """Let a Ray that this process starts listen on the loopback address only. Call it before Ray is imported.

    Args:
        address: `cluster.address`; a Ray that is joined listens where it was told to.
    """
    if ray_address(address) == "local":
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # Ray's own: may other machines' nodes join?


def connect(config: Config) -> None:
    """Join the cluster that the configuration or the job names, or start a local one; do nothing if Ray is there.

    Raises:
        MachineError: the cluster does not answer, or a local one is wanted and no port is free.
    """
    import ray
    import ray.data

    from pipelines.machine.nodes import join_cluster

    settings = (config.run_dir, config.data.root, config.model.policy, config.model.embedder)
    if any(url_of(path) for path in settings):
        keep_budget(config.storage.cache or default_cache(), config.storage.cache_gib)
    if ray.is_initialized():
        return
    _log_by_root()
    ray.data.DataContext.get_current().enable_progress_bars = False  # the stages show their own
    cluster, address = config.cluster, ray_address(config.cluster.address)
    at_sigterm = signal.getsignal(signal.SIGTERM)
    if address != "local":
        join_cluster(address, configure_logging=False)
    else:
        check_port()
        ray.init(
            address="local",
            num_cpus=cluster.num_cpus,
            object_store_memory=int(cluster.object_store_gib * 2**30),
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
        )
    if callable(at_sigterm) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, at_sigterm)  # Ray has put its own in its place


def _log_by_root() -> None:
    """Hand what Ray logs, and the messages of its nodes, to the root logger."""
    from ray._private import worker

    def log_message(message: dict[str, Any], ignore_prefix: bool) -> None:
        logging.getLogger("ray").warning("%s: %s", message["pid"], "\n".join(message["lines"]))

    for name in RAY_LOGGERS:
        logger = logging.getLogger(name)
        for handler in logger.handlers[:]:
            if type(handler).__name__ in ("PlainRayHandler", "StreamHandler"):
                logger.removeHandler(handler)
        logger.propagate = True
    for name, level in {"ray.data": logging.WARNING, "ray.data._internal.progress": logging.ERROR}.items():
        logging.getLogger(name).setLevel(level)
    worker.print_to_stdstream = log_message  # Ray 2.60 prints these without asking
