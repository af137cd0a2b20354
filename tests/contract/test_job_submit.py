"""A job submitted to a Ray head with token authentication runs, and nobody gets in without the token.

The head is the one that `cluster/local_head.sh` starts, on free ports; afterwards all that it started is gone.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

REPOSITORY = Path(__file__).parents[2]
RAY = str(Path(sys.executable).parent / "ray")


@dataclass(frozen=True)
class LocalHead:
    """A running head.

    Attributes:
        env: the process environment of a client: addresses and token.
        job_server: http://host:port of the dashboard.
        gcs: host:port for `ray.init`.
    """

    env: dict[str, str]
    job_server: str
    gcs: str

    def submit(self, working_dir: Path, *entrypoint: str, limit_s: float = 240) -> subprocess.CompletedProcess[str]:
        """`ray job submit` and wait for the end; stdout holds the log of the job."""
        command = [RAY, "job", "submit", "--working-dir", str(working_dir), "--", *entrypoint]
        return subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=limit_s)


def read_env_file(path: Path) -> dict[str, str]:
    pairs = (shlex.split(line)[1].split("=", 1) for line in path.read_text().splitlines())
    return {name: value for name, value in pairs}


@pytest.fixture(scope="module")
def local_head() -> Iterator[LocalHead]:
    # Not pytest's tmp_path: Ray's socket paths under it would be longer than 107 bytes.
    with tempfile.TemporaryDirectory(prefix="vsr1-", dir="/tmp") as folder:
        log = Path(folder) / "local_head.log"
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        with log.open("w") as output:
            script = subprocess.Popen(
                [str(REPOSITORY / "cluster" / "local_head.sh"), "--temp-dir", folder, "--num-cpus", "2"],
                env=os.environ | {"PATH": path},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started: list[psutil.Process] = []
        try:
            env_file, deadline = Path(folder) / "head.env", time.monotonic() + 90
            while not env_file.exists():
                assert script.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            variables = read_env_file(env_file)
            yield LocalHead(
                env=os.environ | {"PATH": path} | variables,
                job_server=variables["RAY_API_SERVER_ADDRESS"],
                gcs=variables["RAY_ADDRESS"],
            )
            started = psutil.Process(script.pid).children(recursive=True)
        finally:
            script.send_signal(signal.SIGTERM)
            script.wait(timeout=60)
        _, left = psutil.wait_procs(started, timeout=15)
        for process in left:
            process.kill()
        assert not left, f"the head left processes behind: {left}"


def test_a_trivial_job_runs_with_the_token(local_head: LocalHead, tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text("import ray\nray.init()\nprint('resources', ray.cluster_resources())\n")
    done = local_head.submit(tmp_path, "python", "job.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "'CPU': 2.0" in done.stdout


def test_a_failing_job_fails_the_submission(local_head: LocalHead, tmp_path: Path) -> None:
    done = local_head.submit(tmp_path, "python", "-c", "raise SystemExit('no such corpus')")
    assert done.returncode == 1
    assert "no such corpus" in done.stdout


@pytest.mark.parametrize("change", [{"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": "0" * 64}])
def test_without_the_token_the_job_server_refuses(local_head: LocalHead, change: dict[str, str]) -> None:
    env = {name: value for name, value in local_head.env.items() if name != "RAY_AUTH_TOKEN_PATH"} | change
    done = subprocess.run([RAY, "job", "list"], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "AuthenticationError" in done.stderr


def test_the_plan_sees_what_the_cluster_has(local_head: LocalHead) -> None:
    script = (
        "import sys; from pipelines.plan import cluster_capacity; print(cluster_capacity(sys.argv[1]).total('cpus'))"
    )
    command = [sys.executable, "-c", script, local_head.gcs]
    done = subprocess.run(command, env=local_head.env, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "2.0"


@pytest.mark.timeout(600)
def test_stage_two_runs_as_a_job(local_head: LocalHead, tmp_path: Path) -> None:
    """The command of the README, with a smaller corpus and a folder that outlives the job."""
    small = ["toy.train=12", "toy.test=4", "grpo.steps=1", "grpo.prompts_per_step=2", "grpo.group_size=2"]
    places = [f"run_dir={tmp_path / 'run'}", f"data.root={tmp_path / 'data'}"]
    command = ["python", "-m", "pipelines.grpo", "--config", "configs/toy.yaml", *small, *places]
    done = local_head.submit(REPOSITORY, *command, limit_s=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "run" / "checkpoints" / "grpo" / "model.safetensors").is_file()
    logged = [json.loads(line) for line in (tmp_path / "run" / "scalars.jsonl").read_text().splitlines()]
    assert {row["name"] for row in logged} >= {"reward/total", "mismatch", "seconds/push"}
