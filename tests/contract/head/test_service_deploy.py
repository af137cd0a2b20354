"""Ways to start and end the service: Serve's configuration file on a head, and the command until it is told to stop."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from pipelines.serve.deploy import application
from vsr1.config import Config
from vsr1.toy.world import COLOURS, SHAPES

REPOSITORY = Path(__file__).parents[3]
BIN = Path(sys.executable).parent
START_S = 200
RUNNING = 16  # searches when the service is stopped


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def declaration(corpus: Path, port: int) -> dict[str, Any]:
    """`cluster/serve.yaml` with the paths and the port of a test."""
    found: dict[str, Any] = yaml.safe_load((REPOSITORY / "cluster" / "serve.yaml").read_text())
    found["http_options"]["port"] = port
    [app] = found["applications"]
    app["args"]["model"]["policy"] = str(REPOSITORY / "checkpoints/toy/policy")
    app["args"]["model"]["embedder"] = str(REPOSITORY / "checkpoints/toy/embedder")
    app["args"]["serve"]["corpora"]["demo"]["root"] = str(corpus)
    app["args"]["cluster"]["rollout"]["memory_gib"] = 1
    app["deployments"][0]["user_config"]["checkpoint"] = str(REPOSITORY / "checkpoints/toy/policy")
    return found


def wait_until_ready(url: str, *, watched: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + START_S
    while True:
        assert watched is None or watched.poll() is None, "the server ended while it started"
        try:
            if httpx2.get(f"{url}/readyz", timeout=60).status_code == 200:
                return
        except httpx2.TransportError:
            pass
        assert time.monotonic() < deadline, "the service did not become ready"
        time.sleep(0.5)


def begun(url: str) -> float:
    """Return how many searches run or wait."""
    text = httpx2.get(f"{url}/metrics", timeout=60).text
    return sum(map(float, re.findall(r"^vsr1_searches_now\{.*\} (\S+)$", text, re.MULTILINE)))


def search(url: str, query: str = "a red ring moving up") -> httpx2.Response:
    return httpx2.post(f"{url}/v1/search", json={"query": query}, timeout=120)


def test_the_file_is_a_configuration_of_serve_and_of_the_service(tmp_path: Path) -> None:
    declared = yaml.safe_load((REPOSITORY / "cluster" / "serve.yaml").read_text())
    [app] = ServeDeploySchema.model_validate(declared).applications
    config = Config.model_validate(app.args)
    assert app.import_path == f"{application.__module__}:{application.__name__}"
    assert {one.name for one in app.deployments} <= {f"agent-{name}" for name in config.served_models}


@pytest.mark.chaos  # it starts and stops a whole service
@pytest.mark.timeout(500)
def test_serve_deploy_and_swap_on_a_head(local_head: Any, toy_data: Path, tmp_path: Path) -> None:
    port = free_port()
    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump(declaration(toy_data, port)))

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, env=local_head.env, capture_output=True, text=True, timeout=200)

    dashboard = local_head.env["RAY_API_SERVER_ADDRESS"]
    done = run(str(BIN / "serve"), "deploy", str(file), "--address", dashboard)
    assert done.returncode == 0, done.stderr
    url = f"http://127.0.0.1:{port}"
    wait_until_ready(url)
    answer = search(url).json()
    assert (answer["model"], answer["weight_version"]) == ("toy", 0)
    policy = str(REPOSITORY / "checkpoints/toy/policy")
    done = run(str(BIN / "vsr1"), "swap", "toy", policy, "--address", local_head.gcs)
    assert done.returncode == 0, done.stderr
    assert search(url).json() | {"id": "", "usage": 0, "turns": 0} == answer | {
        "id": "", "usage": 0, "turns": 0, "weight_version": 1,
    }  # fmt: skip
    stranger = {name: value for name, value in local_head.env.items() if not name.startswith("RAY_AUTH")}
    done = subprocess.run(
        [str(BIN / "vsr1"), "swap", "toy", policy, "--address", local_head.gcs],
        env=stranger | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode != 0
    assert search(url).json()["weight_version"] == 1
    done = run(str(BIN / "serve"), "shutdown", "-y", "--address", dashboard)
    assert done.returncode == 0, done.stderr


@pytest.mark.chaos
@pytest.mark.timeout(500)
def test_a_server_that_is_stopped_answers_what_it_has_begun(toy_data: Path, tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    log = tmp_path / "log"
    command = [BIN / "vsr1", "serve", REPOSITORY / "checkpoints/toy/policy", "--corpus", toy_data]
    settings = ["-c", REPOSITORY / "configs/toy.yaml", "cluster.rollout.memory_gib=1", "--port", str(port)]
    with log.open("w") as output:
        server = subprocess.Popen(
            [*command, *settings], stdout=output, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
    try:
        wait_until_ready(url, watched=server)
        queries = [f"a {colour} {shape} moving up" for colour in COLOURS for shape in SHAPES][:RUNNING]
        with ThreadPoolExecutor(RUNNING) as pool:
            coming = [pool.submit(search, url, query) for query in queries]
            while begun(url) < RUNNING:
                time.sleep(0.1)
            os.killpg(server.pid, signal.SIGTERM)  # as `timeout` and systemd do: Ray's processes get it too
            time.sleep(0.5)
            ready = httpx2.get(f"{url}/readyz", timeout=60)
            assert (ready.status_code, ready.json()["error"]["code"]) == (503, "stopping")
            answers = [one.result() for one in coming]
        assert [answer.status_code for answer in answers] == [200] * RUNNING, log.read_text()
        assert server.wait(timeout=60) == 0, log.read_text()
        told = log.read_text().splitlines()
        assert told[0] == "starting Ray" and f"page: {url}/" in told and told[-1].startswith("stopping")
    finally:
        server.kill()
