"""Ray Serve applications: started on this machine's port, declared, watched, and kept until somebody interrupts."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import ray
from ray import serve
from ray.serve._private.common import DeploymentStatus
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus, ServeDeploySchema

from pipelines.machine.resources import check_port
from pipelines.stage.connection import connect
from vsr1.config import Config

# Ray's own: what its proxy has in front of it. It counts for a Ray that this process starts.
os.environ.setdefault("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "pipelines.serve.front:middlewares")
AGENT = "agent-"  # before the name of a model: its deployment
POLL_S = 0.5
TELL_S = 10.0  # from one line to the next of what is waited for


class ServiceError(RuntimeError):
    """What is served cannot be started or changed; the message says why."""


def start_serve(host: str, port: int) -> None:
    """Start Serve on the Ray that runs; nothing happens if it is there."""
    serve.start(http_options={"host": host, "port": port}, logging_config={"enable_access_log": False})


def declared() -> dict[str, dict[str, Any]]:
    """Return the applications by name, as they were declared here or by `serve deploy`.

    Raises:
        ServiceError: no Serve runs on the Ray that this process has joined.
    """
    return {name: app["deployed_app_config"] for name, app in _applications().items() if app["deployed_app_config"]}


def declare(application: dict[str, Any], tell: Callable[[str], None] = lambda line: None) -> None:
    """Deploy an application of Ray Serve's own configuration format, and wait until it is as declared.

    Unlike `serve.run` this changes replicas in place where only their `user_config` differs from what runs.

    Args:
        tell: gets a line now and then on what is waited for.

    Raises:
        ServiceError: it does not start.
    """
    began = told_at = time.monotonic()
    waiting: list[str] = []
    every = declared() | {application["name"]: application}
    _get_global_client().deploy_apps(ServeDeploySchema.model_validate({"applications": list(every.values())}))
    while (app := _applications()[application["name"]])["status"] != ApplicationStatus.RUNNING:
        if app["status"] in (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY):
            faults = [f"{name}: {one['message']}" for name, one in app["deployments"].items() if one["message"]]
            raise ServiceError("; ".join([f"{application['name']} does not run: {app['message']}", *faults]))
        missing = [name for name, one in app["deployments"].items() if one["status"] != DeploymentStatus.HEALTHY]
        now = time.monotonic()
        if missing != waiting or now - told_at > TELL_S:
            tell(f"waiting for {', '.join(missing) or 'Ray Serve'} ({now - began:.0f} s)")
            waiting, told_at = missing, now
        time.sleep(POLL_S)


def running_agents(application: str) -> dict[str, int]:
    """Count the agents of each model that can search, or load new weights right now."""
    return {
        name.removeprefix(AGENT): sum(replica["state"] in ("RUNNING", "UPDATING") for replica in one["replicas"])
        for name, one in _applications()[application]["deployments"].items()
        if name.startswith(AGENT)
    }


def replica_pids(application: str) -> dict[str, list[int]]:
    """Return the process ids of the replicas that run, by deployment."""
    return {
        name: [replica["pid"] for replica in one["replicas"] if replica["state"] == "RUNNING"]
        for name, one in _applications()[application]["deployments"].items()
    }


def serve_until_interrupted(
    config: Config, port: int, start: Callable[[], None], where: list[str], drain: Callable[[], None]
) -> None:
    """Join or start Ray, call `start`, and at an interrupt or SIGTERM `drain`, and shut Serve down.

    The processes that Ray starts here take no SIGTERM: it may come to all of a group or a control group, and they have
    the searches to finish. They end with this one.

    Args:
        where: lines that are printed when it runs.

    Raises:
        MachineError: the port is taken.
    """
    check_port(port)
    print("starting Ray", flush=True)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    connect(config)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    try:
        start()
        print(f"Ray: {ray.get_runtime_context().gcs_address}", *where, sep="\n", flush=True)
        with suppress(KeyboardInterrupt):
            while True:  # a signal that another thread gets interrupts no wait of this one
                time.sleep(POLL_S)
        print("stopping: what has begun is finished; a second signal ends it", flush=True)
        drain()
    finally:
        serve.shutdown()


def _applications() -> dict[str, Any]:
    """Return what Serve's controller knows; `serve.status()` would parse all of it anew.

    `_get_global_client` is private to Ray Serve 2.60, which has no public way to these details and to `deploy_apps`.
    """
    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        raise ServiceError("Ray Serve does not run there; start `vsr1 serve` or `serve deploy`, or give its --address")
    applications: dict[str, Any] = client.get_serve_details()["applications"]
    return applications
