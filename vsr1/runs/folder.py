"""The configuration that a run folder keeps of each stage.

One rule: a stage writes what it runs with to `config.<stage>.yaml` when it begins, so no stage overwrites another's,
and to `config.yaml`, which therefore is that of the stage that began last. A stage is what names its files: `sft`,
`grpo`, `demo`, and an evaluation by its name (`eval`, `before`, `after`).
"""

from __future__ import annotations

from pathlib import Path

from vsr1.config import Config, ConfigError, dump_config
from vsr1.formats.atomic import replacing

TRAINING_LOG = "train_trajectories.jsonl"
EVALUATION_LOG = ".trajectories.jsonl"  # after the evaluation's name, and its agent's if it has one


def write_config(config: Config, stage: str) -> None:
    for name in (f"config.{stage}.yaml", "config.yaml"):
        with replacing(config.run_dir / name) as part:
            part.write_text(dump_config(config), encoding="utf-8")


def config_of(log: Path) -> Path:
    """The configuration that the trajectories of a file were made with.

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
