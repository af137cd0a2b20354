"""A job submitted to a Ray head with token authentication runs, and nobody gets in without the token.

Both stages run as such jobs in ../run/test_stages.py.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[3]
RAY = str(Path(sys.executable).parent / "ray")


def test_a_trivial_job_runs_with_the_token(local_head: Any, tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text("import ray\nray.init()\nprint('resources', ray.cluster_resources())\n")
    process = local_head.submit(tmp_path, "python", "job.py")
    assert process.returncode == 0, process.stdout + process.stderr
    assert "'CPU': 2.0" in process.stdout


def test_a_failing_job_fails_the_submission(local_head: Any, tmp_path: Path) -> None:
    process = local_head.submit(tmp_path, "python", "-c", "raise SystemExit('no such corpus')")
    assert process.returncode == 1
    assert "no such corpus" in process.stdout


@pytest.mark.parametrize("change", [{"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": "0" * 64}])
def test_without_the_token_the_job_server_refuses(local_head: Any, change: dict[str, str]) -> None:
    env = {name: value for name, value in local_head.env.items() if name != "RAY_AUTH_TOKEN_PATH"} | change
    process = subprocess.run([RAY, "job", "list"], env=env, capture_output=True, text=True, timeout=60)
    assert process.returncode != 0
    assert "AuthenticationError" in process.stderr


def test_the_plan_sees_what_the_cluster_has(local_head: Any) -> None:
    script = (
        "import sys; from pipelines.machine.nodes import capacity; from vsr1.config import load_config; "
        "print(capacity(load_config(None, ['cluster.address=' + sys.argv[1]])).total('cpus'))"
    )
    command = [sys.executable, "-c", script, local_head.gcs]
    process = subprocess.run(command, env=local_head.env, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    assert process.stdout.split()[-1] == "2.0"
