"""Whose a run folder is, and the configuration that it keeps of each stage.

A folder belongs to one run: one training at a time works in it, and one evaluation of a name, and what another run has
trained there is not added to.

One rule: a stage writes what it runs with to `config.<stage>.yaml` when it begins, so no stage overwrites another's,
and to `config.yaml`, which therefore is that of the stage that began last. A stage is what names its files: `sft`,
`grpo`, `demo`, and an evaluation by its name (`eval`, `before`, `after`).
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vsr1.config import RENAMED, Config, ConfigError, config_values, dump_config
from vsr1.formats.atomic import replacing
from vsr1.runs.scalars import SCALARS, read_scalars
from vsr1.storage import url_of

TRAININGS = ("sft", "grpo")  # stages that share the log of a folder
ELSEWHERE = ("cluster", "storage", "fleet", "serve", "toy", "run_dir")  # settings that change no number of a training
TRAINING_LOG = "train_trajectories.jsonl"
EVALUATION_LOG = ".trajectories.jsonl"  # after the evaluation's name, and its agent's if it has one


class RunFolderError(RuntimeError):
    """A folder that another run has, or had; the message says which, what differs and what to do."""


def lock_of(run_dir: Path, stage: str) -> Path:
    """Return the file that a stage locks while it works in a run folder; trainings share one."""
    return run_dir / f".{'training' if stage in TRAININGS else stage}.lock"


@contextmanager
def owned(run_dir: Path, stage: str) -> Iterator[None]:
    """Hold a run folder for a stage; the lock ends with the process, however that ends.

    Raises:
        RunFolderError: another process holds it.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with lock_of(run_dir, stage).open("a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            raise RunFolderError(
                f"{run_dir} is in use by {holder}; wait for its end, or give this run another run_dir"
            ) from None
        except OSError as error:  # a file system without locks is no reason not to train
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
                raise
            logging.getLogger(__name__).warning("%s cannot be locked: %s", run_dir, error)
        lock.truncate(0)
        lock.write(f"`{stage}` of process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        yield


def check_untrained(config: Config, stage: str) -> None:
    """See that a run folder holds no step of a stage that cannot go on from an earlier run.

    Raises:
        RunFolderError: it does; the settings in which the two runs differ are named.
    """
    run, path = config.run_dir, config.run_dir / SCALARS
    steps = [row["step"] for row in read_scalars(path) if row["stage"] == stage] if path.is_file() else []
    if not steps:
        return
    earlier, difference = run / f"config.{stage}.yaml", "the same settings"
    if earlier.is_file():
        lines = differences(
            config_values(earlier), json.loads(config.model_dump_json(exclude=set(ELSEWHERE))), both=True
        )
        difference = "; ".join(lines) or difference
    raise RunFolderError(
        f"{run} holds {max(steps)} steps of an earlier {stage} ({difference}), and {stage} does not go on from them: "
        f"give this run another run_dir, or remove the folder; its weights are in {run}/checkpoints, for model.policy"
    )


def kept_in(run_dir: Path) -> str:
    """Return a line on what a stage that stops now leaves to go on from."""
    states = sorted(run_dir.glob("state/*/step-*"), key=_step)[-1:]
    checkpoints = sorted((path for path in run_dir.glob("checkpoints/*/") if path.name != "start"), key=_step)
    parts = [f"{path.relative_to(run_dir)} (the same command goes on from it)" for path in states]
    if not states and any(run_dir.glob("ledger/*.journal")):
        parts.append("ledger (rollouts; the same command takes them)")
    parts += [f"{path.relative_to(run_dir)}" for path in checkpoints]
    url = url_of(run_dir)
    copied = f" (its commits are at {url})" if url else ""
    return f"kept in {run_dir}{copied}: {', '.join(parts) or 'logs only, no state and no checkpoint'}"


def _step(path: Path) -> tuple[int, str]:
    number = path.name.removeprefix("step-")
    return (int(number), "") if number.isdecimal() else (0, number)


def differences(
    saved: Mapping[str, Any],
    wanted: Mapping[str, Any],
    renamed: Mapping[str, str] = RENAMED,
    defaults: Mapping[str, Any] | None = None,
    *,
    both: bool = False,
) -> list[str]:
    """Return a line for each setting in which two nested JSON values differ, by dotted key.

    Args:
        renamed: new key by old one, of settings that `saved` has under the old one.
        defaults: what a setting that `saved` does not know was before there was one.
        both: leave out what only one of them has.
    """
    after, missing = _flat(wanted), "not set"
    before = {key: value for key, value in _flat(defaults or {}).items() if key in after}
    before |= {renamed.get(key, key): value for key, value in _flat(saved).items()}
    keys = before.keys() & after.keys() if both else before.keys() | after.keys()
    return [
        f"{key} was {before.get(key, missing)!r}, is {after.get(key, missing)!r}"
        for key in sorted(keys)
        if before.get(key, missing) != after.get(key, missing)
    ]


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    """Return the leaves of a JSON value by dotted key."""
    if not isinstance(value, dict):
        return {key: value}
    return {k: leaf for name, part in value.items() for k, leaf in _flat(part, f"{key}.{name}".lstrip(".")).items()}


def write_config(config: Config, stage: str) -> None:
    """Write the configuration of a stage that begins."""
    for name in (f"config.{stage}.yaml", "config.yaml"):
        with replacing(config.run_dir / name) as part:
            part.write_text(dump_config(config), encoding="utf-8")


def config_of(log: Path) -> Path:
    """Return the configuration that the trajectories of a file were made with.

    Raises:
        ConfigError: no such file, or its folder holds no configuration.
    """
    if not log.is_file():
        raise ConfigError(f"{log} does not exist; name a file of trajectories in a run folder")
    stage = "grpo" if log.name == TRAINING_LOG else log.name.removesuffix(EVALUATION_LOG)
    while stage:
        path = log.parent / f"config.{stage}.yaml"
        if path.is_file():
            return path
        stage, _, _ = stage.rpartition("-")
    path = log.parent / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{log.parent} holds no config of {log.name}; give the run's own with --config")
    return path
