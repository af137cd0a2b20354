"""What is left of a stage that failed: one folder with all that is needed to find out why.

`<run_dir>/post-mortem-<UTC time>/` holds the traceback, the configuration, versions and hardware, the scalars of the
last steps, the ends of the actors' logs and, while Ray is up, its timeline (for chrome://tracing). No environment
variables, so no secrets. The error goes on as it was, with a note on where the folder is.
"""

from __future__ import annotations

import json
import os
import platform
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import ray
import torch

from pipelines.machine.probes import SUPPORTED, installed_version
from vsr1.config import Config, dump_config
from vsr1.formats.atomic import write_json, write_lines
from vsr1.runs.folder import write_config
from vsr1.runs.scalars import read_scalars

LAST_STEPS = 20
LOG_TAIL_BYTES = 64 * 1024


@contextmanager
def kept_in_folder(config: Config, stage: str) -> Iterator[None]:
    """Around a whole stage: its configuration is written before, a post-mortem if it fails."""
    write_config(config, stage)
    try:
        yield
    except Exception as error:  # whatever it was: it is raised again
        try:
            error.add_note(f"post-mortem: {write_post_mortem(config, error)}")
        except Exception as second:  # must not hide the first
            error.add_note(f"no post-mortem, because writing it failed: {second!r}")
        raise


def write_post_mortem(config: Config, error: BaseException) -> Path:
    """Write the folder and return its path; what is most needed comes first."""
    run = config.run_dir
    folder = run / f"post-mortem-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
    folder.mkdir(parents=True)
    (folder / "traceback.txt").write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    (folder / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    write_json(folder / "versions.json", _versions())
    _copy_log_tails(run / "logs", folder / "logs")
    if (run / "scalars.jsonl").is_file():
        rows = read_scalars(run / "scalars.jsonl")
        last = sorted({(row["stage"], row["step"]): row["time"] for row in rows}.items(), key=lambda item: item[1])
        kept = {key for key, _ in last[-LAST_STEPS:]}
        write_lines(folder / "scalars.jsonl", (row for row in rows if (row["stage"], row["step"]) in kept))
    if ray.is_initialized():
        write_json(folder / "cluster.json", ray.cluster_resources())
        (folder / "timeline.json").write_text(json.dumps(ray.timeline()), encoding="utf-8")
    return folder


def _versions() -> dict[str, object]:
    """Of Python and the packages, and the GPUs that this process sees."""
    packages = {part: installed_version(names) for part, (names, _) in SUPPORTED.items()}
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"python": platform.python_version(), "platform": platform.platform(), **packages, "gpus": gpus}


def _copy_log_tails(logs: Path, target: Path) -> None:
    target.mkdir()
    for path in sorted(logs.glob("*.log")):
        with path.open("rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - LOG_TAIL_BYTES))
            (target / path.name).write_bytes(log.read())
