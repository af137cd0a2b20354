"""Ray Serve applications: started on this machine's port, declared, watched, and kept until somebody interrupts."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import suppress
from threading import Event
from typing import Any

import ray
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus, ServeDeploySchema

from pipelines.machine.resources import check_port
from pipelines.stage.connection import connect
from vsr1.config import Config

AGENT = "agent-"  # before the name of a model: its deployment
POLL_S = 0.5


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


def declare(application: dict[str, Any]) -> None:
    """Deploy an application of Ray Serve's own configuration format, and wait until it is as declared.

    Unlike `serve.run` this changes replicas in place where only their `user_config` differs from what runs.

    Raises:
        ServiceError: it does not start.
    """
    every = declared() | {application["name"]: application}
    _get_global_client().deploy_apps(ServeDeploySchema.model_validate({"applications": list(every.values())}))
    while (app := _applications()[application["name"]])["status"] != ApplicationStatus.RUNNING:
        if app["status"] in (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY):
            faults = [f"{name}: {one['message']}" for name, one in app["deployments"].items() if one["message"]]
            raise ServiceError("; ".join([f"{application['name']} does not run: {app['message']}", *faults]))
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
    config: Config, host: str, port: int, path: str, start: Callable[[], None], drain: Callable[[], None] = lambda: None
) -> None:
    """Join or start Ray, call `start`, say where requests go; at an interrupt or SIGTERM `drain`, and shut Serve down.

    Raises:
        MachineError: the port is taken.
    """
    check_port(port)
    connect(config)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        start()
        print(f"POST http://{host}:{port}{path}", flush=True)
        print(f"Ray: {ray.get_runtime_context().gcs_address}", flush=True)
        with suppress(KeyboardInterrupt):
            Event().wait()
        drain()
        for name in serve.status().applications:  # while HTTP is still there, for what is on its way to a client
            serve.delete(name)
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
