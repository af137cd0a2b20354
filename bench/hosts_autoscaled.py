"""Stage 2 on a Ray whose autoscaler (v2) adds nodes, all of this machine, for members and takes idle ones away.

Ray's own `AutoscalingCluster` begins and ends with `ray stop --force`, which ends every Ray of the machine, and reads a
file that the wheel does not have; so its provider of nodes is used without it, as an external one.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import ray
from ray._raylet import GcsClient  # type: ignore[attr-defined]  # the stubs leave it out
from ray.core.generated import autoscaler_pb2

from bench.hosts import RUN_S, last_step, timeline, until
from bench.soak import samples, training
from pipelines.submit.server import MODE
from vsr1.config import Config
from vsr1.runs.events import EVENTS, read_events
from vsr1.runs.scale import ask_scale
from vsr1.settings.parts import NodeGroup

RAY = str(Path(sys.executable).parent / "ray")
PREEMPTED_S = 60  # that a node has which is preempted
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
HEAD_TYPE, HEAD_ID = "ray.head.default", "f" * 51 + "00000"  # as Ray's provider names them
START_S, END_S = 90.0, 15.0


def bench_autoscaled(config: Config) -> dict[str, Any]:
    """Train with one rollout worker on a node that comes for it; ask for a second one, preempt a node, ask for one.

    The training is stopped when the node that nobody uses has left.

    Returns:
        what happened with its seconds, and how the samples were counted, in its log and by its ledger.

    Raises:
        RuntimeError: the training ended before, by an error or as it has too few steps.
    """
    role = config.cluster.rollout.model_copy(update={"cpus": 1.5, "memory_gib": 0.0, "labels": {"pool": "spot"}})
    spot = {"resources": {"CPU": 2, "object_store_memory": 2**28}, "labels": {"pool": "spot"}, "max_workers": 2}
    group = NodeGroup(count=2, cpus=2, memory_gib=1, labels={"pool": "spot"}, autoscaled=True)
    run, began = config.run_dir, time.time()
    acts: list[dict[str, Any]] = []

    def act(what: str) -> None:
        acts.append({"time": time.time(), "kind": what})

    def told(kind: str) -> list[dict[str, Any]]:
        return [event for event in read_events(run / EVENTS) if event["kind"] == kind]

    def wait(condition: Callable[[], bool], what: str) -> None:
        until(lambda: process.poll() is not None or condition(), f"{what} in {run}", RUN_S)
        if process.poll() is not None:
            raise RuntimeError(f"the training ended before {what}; see {run / 'logs' / 'console.log'}")

    with autoscaling_head({"spot": spot}, {"CPU": 2}) as address:
        changes = {"address": address, "rollout": role, "nodes": {"spot": group}}
        config = config.model_copy(update={"cluster": config.cluster.model_copy(update=changes)})
        with training(config) as process:
            wait(lambda: last_step(run) >= 1, "the first step")
            act("asked for 2")
            ask_scale(run, "rollouts=2")
            wait(lambda: len(told("serving")) >= 2, "the second member")
            first = told("node joined")[0]
            act(f"node {first['node'][-5:]} is preempted")
            drain(address, first["node"], PREEMPTED_S)
            wait(lambda: len(told("node joined")) >= 3, "a node in its place")
            act("asked for 1")
            ask_scale(run, "rollouts=1")
            wait(lambda: len(told("node gone")) >= 2, "the end of a node")
            act("stopped")
        counts = samples(config)
        figures = {name: counts[name] for name in ("trained", "repeated", "ledger_trained")}
        return {
            "exit_code": process.returncode,
            **figures,
            "events": timeline(began, acts + read_events(run / EVENTS)),
        }


def drain(address: str, node: str, deadline_s: float) -> None:
    """Say, as a provider of spot machines does, that a node goes within some seconds."""
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    end_ms = int((time.time() + deadline_s) * 1000)
    is_accepted, problem = GcsClient(address=address).drain_node(node, reason, "spot", end_ms)
    if not is_accepted:
        raise RuntimeError(f"node {node} was not drained: {problem}")


@contextmanager
def autoscaling_head(groups: dict[str, dict[str, Any]], head: dict[str, float], idle_s: float = 6.0) -> Iterator[str]:
    """Start a head and yield the address of its GCS; afterwards all its nodes are gone.

    Args:
        groups: what the autoscaler may add by name: `resources`, `labels`, and `max_workers` nodes.
        head: resources of the head.
        idle_s: after which a node that nobody uses leaves.
    """
    with tempfile.TemporaryDirectory(prefix="v", dir="/tmp") as folder, socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
        probe.close()
        address = f"{ray.util.get_node_ip_address()}:{port}"
        settings = Path(folder) / "autoscaling.json"
        settings.write_text(json.dumps(_settings(groups, head, address, idle_s)), encoding="utf-8")
        command = [RAY, "start", "--head", "--block", "--port", str(port)]
        command += ["--temp-dir", folder, "--autoscaling-config", str(settings)]
        command += ["--include-dashboard", "false", "--disable-usage-stats", "--num-cpus", str(int(head["CPU"]))]
        command += ["--object-store-memory", str(2**27)]
        mode = os.environ.get(MODE, "")
        os.environ[MODE] = "disabled"  # of the head and of who joins it, as of a Ray of one process
        env = os.environ | {
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        }
        log = Path(folder) / "head.log"
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, env=env, start_new_session=True)
        try:
            _wait_until_it_answers(process, port, log)
            yield address
        finally:
            os.environ[MODE] = mode
            process.send_signal(signal.SIGTERM)
            process.wait(END_S)
            _end_all(folder)


def _settings(groups: dict[str, dict[str, Any]], head: dict[str, float], gcs: str, idle_s: float) -> dict[str, Any]:
    """Return what Ray's autoscaler reads."""
    group: dict[str, Any] = {"min_workers": 0, "node_config": {}}
    provider: dict[str, Any] = {"type": "external", "module": PROVIDER, "gcs_address": gcs, "head_node_id": HEAD_ID}
    provider |= dict.fromkeys(("launch_multiple", "use_node_id_as_ip", "disable_node_updaters"), True)
    types = {HEAD_TYPE: {"resources": head, "max_workers": 0}} | groups
    return {
        "cluster_name": "autoscaled",
        "max_workers": sum(one["max_workers"] for one in groups.values()),
        "upscaling_speed": 20.0,
        "idle_timeout_minutes": idle_s / 60,
        "provider": provider | {"disable_launch_config_check": True},
        **{f"{name}setup_commands": [] for name in ("", "head_", "worker_")},
        "cluster_synced_files": [],
        "head_node_type": HEAD_TYPE,
        "available_node_types": {name: group | one for name, one in types.items()},
    }


def _wait_until_it_answers(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while "Ray runtime started" not in log.read_text(errors="replace"):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the head at port {port} did not start: {log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.2)


def _end_all(folder: str) -> None:
    """End what is left of a Ray with this folder: nodes of the autoscaler outlive their head."""
    for process in psutil.process_iter(["cmdline"]):
        if any(folder in part for part in process.info["cmdline"] or ()):
            process.kill()
