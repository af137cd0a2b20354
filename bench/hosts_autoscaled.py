"""A Ray whose autoscaler (v2) adds nodes of this machine for what wants them, and takes idle ones away.

Ray's own `AutoscalingCluster` begins and ends with `ray stop --force`, which ends every Ray of the machine, and reads a
file that the wheel does not have; so its provider of nodes is used without it.
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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

HEAD_TYPE, HEAD_ID = "ray.head.default", "f" * 51 + "00000"  # as Ray's provider names them
START_S, END_S = 90.0, 15.0


@contextmanager
def autoscaling_head(groups: dict[str, dict[str, Any]], head: dict[str, float], idle_s: float = 6.0) -> Iterator[str]:
    """Start a head and yield the address of its GCS; afterwards all its nodes are gone.

    Args:
        groups: what the autoscaler may add by name: `resources`, `labels`, and `max_workers` nodes.
        head: resources of the head.
        idle_s: after which a node that nobody uses leaves.
    """
    with tempfile.TemporaryDirectory(prefix="v", dir="/tmp") as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        address = f"127.0.0.1:{port}"
        settings = Path(folder) / "autoscaling.json"
        settings.write_text(json.dumps(_settings(groups, head, address, idle_s)), encoding="utf-8")
        command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--port", str(port)]
        command += ["--node-ip-address", "127.0.0.1", "--temp-dir", folder, "--autoscaling-config", str(settings)]
        command += ["--include-dashboard", "false", "--disable-usage-stats", "--num-cpus", str(int(head["CPU"]))]
        command += ["--object-store-memory", str(2**27)]
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
            process.send_signal(signal.SIGTERM)
            process.wait(END_S)
            _end_all(folder)


def _settings(groups: dict[str, dict[str, Any]], head: dict[str, float], gcs: str, idle_s: float) -> dict[str, Any]:
    group: dict[str, Any] = {"min_workers": 0, "node_config": {}}
    provider = {"type": "fake_multinode", "gcs_address": gcs, "head_node_id": HEAD_ID, "launch_multiple": True}
    return {
        "cluster_name": "autoscaled",
        "max_workers": sum(one["max_workers"] for one in groups.values()),
        "upscaling_speed": 20.0,
        "idle_timeout_minutes": idle_s / 60,
        "provider": provider
        | {"use_node_id_as_ip": True, "disable_node_updaters": True, "disable_launch_config_check": True},
        "head_node_type": HEAD_TYPE,
        "available_node_types": {HEAD_TYPE: group | {"resources": head, "max_workers": 0}}
        | {name: group | one for name, one in groups.items()},
        **{name: {} for name in ("auth", "file_mounts")},
        **{
            name: []
            for name in (
                "cluster_synced_files",
                "file_mounts_sync_continuously",
                "rsync_exclude",
                "rsync_filter",
                "initialization_commands",
                "setup_commands",
                "head_setup_commands",
                "worker_setup_commands",
                "head_start_ray_commands",
                "worker_start_ray_commands",
            )
            if name != "file_mounts_sync_continuously"
        },
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
