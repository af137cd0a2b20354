"""A Ray Serve application on this machine's port: started, and kept until somebody interrupts it."""

from __future__ import annotations

import time
from collections.abc import Callable

from ray import serve

from pipelines.machine import check_port
from pipelines.services import connect
from vsr1.config import Config


def deploy(application: serve.Application, name: str, host: str, port: int) -> None:
    """Deploy on the Ray that runs, and wait until it answers."""
    serve.start(http_options={"host": host, "port": port}, logging_config={"enable_access_log": False})
    serve.run(application, name=name, route_prefix="/")


def serve_until_interrupted(config: Config, host: str, port: int, path: str, start: Callable[[], None]) -> None:
    """Join or start Ray, call `start`, say where requests go, and shut Serve down at an interrupt.

    Raises:
        MachineError: the port is taken.
    """
    check_port(port)
    connect(config)
    start()
    print(f"POST http://{host}:{port}{path}", flush=True)
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        serve.shutdown()
