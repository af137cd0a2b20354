"""What a stage that failed leaves behind: one folder with all that is needed to find out why.

`<run_dir>/post-mortem-<UTC time>/` holds the traceback, the configuration, versions and hardware, the scalars of the
last steps, the ends of the logs and, while Ray is up, its timeline (for chrome://tracing). It holds no environment
variables, so no secrets. A part that cannot be written leaves the others. The error goes on as it was, with a note that
says where the folder is.
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
from typing import Any

import ray

from vsr1.config import Config, dump_config
from vsr1.formats.atomic import write_json, write_lines
from vsr1.runs.folder import owned, write_config
from vsr1.runs.mirror import mirrored
from vsr1.versions import SUPPORTED, installed_version

LAST_STEPS = 20
LOG_TAIL_BYTES = 64 * 1024


@contextmanager
def kept_in_folder(config: Config, stage: str) -> Iterator[None]:
    """Hold the run folder for a stage, write its configuration before it, and a post-mortem if it fails.

    Of a folder at a URL, its last commit is fetched before, and what the stage has left is copied there after it.

    Raises:
        RunFolderError: another process has the folder; nothing in it is changed. Of a URL, errors as of `mirrored`.
    """
    with owned(config.run_dir, stage), mirrored(config.run_dir, stage):
        write_config(config, stage)
        try:
            yield
        except Exception as error:  # of any kind: it is raised again
            try:
                error.add_note(f"post-mortem: {write_post_mortem(config, error)}")
            except Exception as second:  # must not hide the first
                error.add_note(f"no post-mortem, because writing it failed: {second!r}")
            raise


def write_post_mortem(config: Config, error: BaseException) -> Path:
    """Write the folder and return its path. What is most needed comes first; `incomplete.txt` says what is missing.

    Raises:
        OSError: not even the traceback can be written.
    """
    folder = config.run_dir / f"post-mortem-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
    folder.mkdir(parents=True)
    (folder / "traceback.txt").write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    faults = []
    for write_part in (_write_config, _write_versions, _write_log_tails, _write_last_scalars, _write_ray):
        try:
            write_part(config, folder)
        except Exception as fault:  # of any kind: it must not cost the other parts
            faults.append(f"{write_part.__name__.removeprefix('_')}: {fault!r}\n")
    if faults:
        (folder / "incomplete.txt").write_text("".join(faults), encoding="utf-8")
    return folder


def _write_config(config: Config, folder: Path) -> None:
    (folder / "config.yaml").write_text(dump_config(config), encoding="utf-8")


def _write_versions(config: Config, folder: Path) -> None:
    """Write the versions of Python and the packages, and the GPUs that this process sees."""
    import torch  # here, because it is slow to import and most runs do not fail

    packages = {part: installed_version(part) for part in SUPPORTED}
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    system = {"python": platform.python_version(), "platform": platform.platform()}
    write_json(folder / "versions.json", system | packages | {"gpus": gpus})


def _write_log_tails(config: Config, folder: Path) -> None:
    (folder / "logs").mkdir()
    for path in sorted((config.run_dir / "logs").glob("*.log")):
        with path.open("rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - LOG_TAIL_BYTES))
            (folder / "logs" / path.name).write_bytes(log.read())


def _write_last_scalars(config: Config, folder: Path) -> None:
    """Write the scalars of the last steps. A line that a killed run has cut off is left out, wherever it is."""
    path = config.run_dir / "scalars.jsonl"
    rows = [row for line in path.read_bytes().splitlines() if (row := _row(line))] if path.is_file() else []
    times = {(row["stage"], row["step"]): row["time"] for row in rows}
    last = set(sorted(times, key=lambda step: times[step])[-LAST_STEPS:])
    if rows:
        write_lines(folder / "scalars.jsonl", (row for row in rows if (row["stage"], row["step"]) in last))


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        return dict(json.loads(line))
    except (ValueError, TypeError):
        return None


def _write_ray(config: Config, folder: Path) -> None:
    """Write what the cluster has and what it did, if this process is connected to it."""
    if ray.is_initialized():
        write_json(folder / "cluster.json", ray.cluster_resources())
        (folder / "timeline.json").write_text(json.dumps(ray.timeline()), encoding="utf-8")
