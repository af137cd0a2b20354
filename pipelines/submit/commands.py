"""Commands that start and end a stage on a cluster: `vsr1 submit` and `vsr1 stop`."""

from __future__ import annotations

import os
import re
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import uuid4

import typer

from pipelines.command import ConfigFile, Overrides, console, guarded, read_settings
from pipelines.submit.server import MARGIN_S, RUN_DIR, STOP_WAIT, follow, job_server, running, stop
from pipelines.submit.upload import upload_of
from vsr1.config import Config, ConfigError
from vsr1.storage import named

Job = Literal["data", "sft", "grpo", "eval"]
Address = Annotated[
    str | None, typer.Option(help="The cluster's dashboard, as in http://host:8265; else RAY_API_SERVER_ADDRESS.")
]
TokenFile = Annotated[Path | None, typer.Option(help="File with the cluster's token; else Ray's own variables.")]
CONFIGS = "submitted"  # folder of the configuration files in the upload

commands = typer.Typer()


@commands.command("submit")
def submit_command(
    stage: Annotated[Job, typer.Argument(help="What the job runs; data is `vsr1 data build`.")],
    overrides: Overrides = None,
    config: ConfigFile = None,
    address: Address = None,
    token_file: TokenFile = None,
    working_dir: Annotated[Path, typer.Option(help="Folder that the job gets a copy of.")] = Path(),
    upload_limit: Annotated[float, typer.Option(min=0, max=100, help="Most MiB of that folder.")] = 50.0,
    runtime_env: Annotated[Path | None, typer.Option(help="YAML file with more of Ray's runtime environment.")] = None,
    wait: Annotated[bool, typer.Option(help="Follow the job and end as it ends.")] = True,
) -> None:
    """Run a stage as a job of a cluster. Nothing of it starts where the cluster or its storage does not fit."""
    settings = read_settings(config, overrides)
    environment = guarded(_environment, runtime_env, settings)
    upload = guarded(upload_of, working_dir.absolute())
    guarded(upload.check, upload_limit)
    client = guarded(job_server, address, token_file)
    run = named(settings.run_dir)
    guarded(_check_free, client, run)
    for line in upload.lines():
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    files = {f"{CONFIGS}/{i}-{file.name}": file.read_bytes() for i, file in enumerate(config or [])}
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "upload.zip"
        guarded(upload.pack, archive, files)
        name = f"{stage}-{re.sub(r'[^A-Za-z0-9_-]', '-', settings.run_dir.name)}-{uuid4().hex[:6]}"
        options = [part for file in files for part in ("-c", file)]
        job = guarded(
            client.submit_job,
            entrypoint="exec " + shlex.join(["python", "-m", "pipelines", "job", stage, *options, *(overrides or [])]),
            runtime_env=environment | {"working_dir": str(archive)},
            metadata={RUN_DIR: run, "vsr1.stage": stage},
            submission_id=name,
        )
    console.print(
        f"job {job}: `vsr1 stop {job}` ends it with a checkpoint; the same command goes on in {run}", soft_wrap=True
    )
    if wait:
        try:
            status = guarded(follow, client, job)
        except KeyboardInterrupt:
            console.print(
                f"job {job} goes on; `ray job logs --follow {job}` shows it, `vsr1 stop {job}` ends it", soft_wrap=True
            )
            raise typer.Exit(130) from None
        console.print(f"job {job}: {status.value}")
        raise typer.Exit(int(status.value != "SUCCEEDED"))


@commands.command("stop")
def stop_command(
    target: Annotated[str, typer.Argument(metavar="JOB|RUN_DIR", help="Id of a job, or the run folder it works in.")],
    address: Address = None,
    token_file: TokenFile = None,
) -> None:
    """End a job of a cluster; Stage 2 saves its state first, and the same `vsr1 submit` goes on from it."""
    client = guarded(job_server, address, token_file)
    for line in guarded(stop, client, target):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


@commands.command("job", hidden=True)
def job_command(stage: Job, overrides: Overrides = None, config: ConfigFile = None) -> None:
    """Check the cluster of this job, then become the stage: a signal goes to that alone."""
    settings = read_settings(config, overrides)
    guarded(_check_cluster, settings, stage)
    options = [part for file in config or [] for part in ("-c", str(file))]
    names = ["data", "build"] if stage == "data" else [stage]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "pipelines", *names, *options, *(overrides or [])])


def _check_cluster(settings: Config, stage: Job) -> None:
    import ray

    from pipelines.stage.connection import connect
    from pipelines.submit.nodes import check_cluster

    connect(settings)
    check_cluster(settings, None if stage == "data" else stage)
    ray.shutdown()


def _environment(file: Path | None, settings: Config) -> dict[str, Any]:
    """Return Ray's runtime environment: that of a file, and how long a job may take to save its state."""
    import yaml

    try:
        values = {} if file is None else yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict) or "working_dir" in values:
        raise ConfigError(f"{file}: a mapping is needed, as in `env_vars: {{NAME: value}}`, without a working_dir")
    wait = str(int(settings.fleet.stop_s + MARGIN_S))
    return values | {"env_vars": {STOP_WAIT: wait} | (values.get("env_vars") or {})}


def _check_free(client: Any, run: str) -> None:
    if jobs := running(client, run):
        raise ConfigError(
            f"job {jobs[0].submission_id} works in run_dir={run}; end it by `vsr1 stop {jobs[0].submission_id}`, or "
            "give this one another run_dir"
        )
