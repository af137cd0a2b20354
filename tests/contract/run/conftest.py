"""One run of both stages for all tests of this folder."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from vsr1.config import Config, load_config

from .options import CONFIG, REPOSITORY, SMALL


@pytest.fixture(scope="package")
def run(
    tmp_path_factory: pytest.TempPathFactory, toy_data: Path, own_head: Callable[[], AbstractContextManager[Any]]
) -> Config:
    """A run folder in which Stage 1, Stage 2 and its evaluation have ended, each stage a job as in the README that has
    left what it printed in `<stage>.job`; with the last policy."""
    folder = tmp_path_factory.mktemp("run")
    models = [f"model.{name}={REPOSITORY / 'checkpoints/toy' / name}" for name in ("policy", "embedder")]
    options = [*SMALL, *models, f"run_dir={folder}", f"data.root={toy_data}"]
    with own_head() as head:
        for stage in ("sft", "grpo"):
            command = ["python", "-m", "pipelines", stage, "--config", "configs/toy.yaml"]
            done = head.submit(REPOSITORY, *command, *options)
            assert done.returncode == 0, done.stdout + done.stderr
            assert [line.split(":")[0] for line in done.stdout.splitlines() if line.startswith(f"{stage} step")] == [
                f"{stage} step 1/2", f"{stage} step 2/2"
            ]  # fmt: skip
            (folder / f"{stage}.job").write_text(done.stdout)
            options.append(f"model.policy={folder / 'checkpoints' / stage}")
    return load_config(CONFIG, options)
