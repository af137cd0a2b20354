"""The job server of a cluster: who may ask it, which jobs work in a run folder, what they print and how they end."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pipelines.machine.resources import MachineError

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

ADDRESS, MODE = "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE"
TOKEN, TOKEN_PATH = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"  # until Ray kills a job that was asked to stop
RUN_DIR = "vsr1.run_dir"  # in the metadata of a job
ANSWER_LIMIT_S = 10.0
MARGIN_S = 15.0  # beyond `fleet.stop_s`, for processes to end


def job_server(address: str | None, token_file: Path | None) -> JobSubmissionClient:
    """Return a client of a job server that answers. Call it before Ray is imported: Ray reads the token then.

    Args:
        address: of the dashboard, as in http://host:8265; None takes that of RAY_API_SERVER_ADDRESS.
        token_file: holds the token of the cluster; None leaves it to Ray's own variables.

    Raises:
        MachineError: no address, nothing that answers there, another program than Ray, or a token that it refuses.
    """
    url = (address or os.environ.get(ADDRESS, "")).rstrip("/")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        state = f"{url!r} is not the address of a job server" if url else "no cluster is named"
        raise MachineError(state, f"give --address http://HOST:8265, the cluster's dashboard, or set {ADDRESS}")
    _take_token(token_file)
    os.environ[ADDRESS] = url  # Ray prefers it to what its client is given
    place = parts.hostname, parts.port or {"http": 80, "https": 443}[parts.scheme]
    try:
        socket.create_connection(place, timeout=ANSWER_LIMIT_S).close()
    except OSError as error:
        fix = "start the head, open its dashboard port (--dashboard-host 0.0.0.0), or correct --address"
        raise MachineError(f"no job server answers at {url} ({error})", fix) from error
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(url)
    except AuthenticationError as error:
        state = f"the cluster at {url} refuses this token ({str(error).splitlines()[0]})"
        fix = f"give the cluster's own by --token-file, or set {MODE}=token and {TOKEN_PATH}"
        raise MachineError(state, fix) from error
    except (OSError, RuntimeError, ValueError) as error:
        state = f"what answers at {url} is no job server of Ray ({error})"
        raise MachineError(state, "correct --address: the port of Ray's dashboard, 8265 by default") from error


def _take_token(file: Path | None) -> None:
    """Let Ray show the token of a file, or one that its own variables or its folder name."""
    if file is not None:
        if not file.is_file() or not file.read_text(encoding="utf-8").strip():
            raise MachineError(f"token file {file} is missing or empty", "copy the cluster's token there")
        os.environ.pop(TOKEN, None)  # it would go before the file
        os.environ[TOKEN_PATH] = str(file.absolute())
    has_token = os.environ.get(TOKEN) or os.environ.get(TOKEN_PATH) or (Path.home() / ".ray/auth_token").is_file()
    if has_token and not os.environ.get(MODE):
        os.environ[MODE] = "token"  # else Ray's clients leave a token that is there unused


def running(client: JobSubmissionClient, target: str) -> list[JobDetails]:
    """Return the jobs that have not ended and have this id or work in this run folder; all of them for ""."""
    jobs = [job for job in client.list_jobs() if job.submission_id and not job.status.is_terminal()]
    return [job for job in jobs if target in (job.submission_id, (job.metadata or {}).get(RUN_DIR)) or not target]


def follow(client: JobSubmissionClient, job: str) -> JobStatus:
    """Print what a job prints until it ends, and return how it ended.

    Raises:
        MachineError: the connection broke off; the job goes on.
    """
    import aiohttp

    async def show() -> None:
        async for text in client.tail_job_logs(job):
            print(text, end="", flush=True)

    try:
        asyncio.run(show())
        return ended(client, job)
    except (aiohttp.ClientError, OSError, RuntimeError) as error:
        state = f"the connection to job {job} broke off, which goes on by itself ({error})"
        raise MachineError(state, f"read on by `ray job logs --follow {job}`") from error


def ended(client: JobSubmissionClient, job: str, limit_s: float = float("inf")) -> JobStatus:
    """Wait for the end of a job and return how it ended.

    Raises:
        MachineError: it has not ended within the limit.
    """
    deadline = time.monotonic() + limit_s
    while not (status := client.get_job_status(job)).is_terminal():
        if time.monotonic() > deadline:
            raise MachineError(f"job {job} is {status.value} after {limit_s:g} s", f"see `ray job logs {job}`")
        time.sleep(0.5)
    return status


def stop(client: JobSubmissionClient, target: str) -> list[str]:
    """Let jobs save their state and end; return a line on each.

    Ray sends SIGTERM, at which Stage 2 saves the state of its last whole step, and kills what is there after the time
    that `vsr1 submit` has set (`fleet.stop_s` and a margin).

    Args:
        target: the id of a job, or the run folder in which it works.

    Raises:
        MachineError: there is none, or it does not end.
    """
    jobs = running(client, target)
    if not jobs:
        others = ", ".join(str(job.submission_id) for job in running(client, "")) or "none"
        raise MachineError(f"no job runs that is called {target} or works there", f"running are: {others}")
    lines = []
    for job in jobs:
        name, environment = str(job.submission_id), (job.runtime_env or {}).get("env_vars") or {}
        client.stop_job(name)
        status = ended(client, name, float(environment.get(STOP_WAIT, 3)) + MARGIN_S)
        log = [line for line in client.get_job_logs(name).splitlines() if line.strip()]
        lines.append(f"{name}: {status.value}; {log[-1] if log else 'it printed nothing'}")
    return lines
