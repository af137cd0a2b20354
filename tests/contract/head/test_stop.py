"""A signal ends Stage 2 on a cluster that it has joined: soon, with a line on what is kept, and nothing of it stays."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

REPOSITORY = Path(__file__).parents[3]
STEPS = "grpo.steps=50"
UNFINISHED = ("state/grpo/.part-*", "checkpoints/.part-*")  # a state and a checkpoint that are being written
SMALL = [
    STEPS, "grpo.save_every=1", "grpo.state_every=1", "grpo.prompts_per_step=2", "grpo.group_size=3",
    "grpo.learner.ranks=1", "retrieval.shards=1", "cluster.rollout.memory_gib=1", "cluster.learner.memory_gib=0.5",
]  # fmt: skip


def actors() -> dict[int, str]:
    """The titles of actors and engines among the processes that these tests have started, by process id."""
    titles = {}
    for process in psutil.Process().children(recursive=True):
        try:
            titles[process.pid] = " ".join(process.cmdline())
        except psutil.Error:
            continue
    return {number: title for number, title in titles.items() if "Actor" in title or "EngineCore" in title}


@pytest.mark.chaos
@pytest.mark.timeout(400)
@pytest.mark.parametrize("moment", ["after a step", "while it saves"])
def test_stage_2_ends_at_a_signal_on_a_cluster_that_it_joined(
    local_head: Any, toy_data: Path, tmp_path: Path, moment: str
) -> None:
    models = [f"model.{name}={REPOSITORY / 'checkpoints/toy' / name}" for name in ("policy", "embedder")]
    command = [sys.executable, "-m", "pipelines", "grpo", "-c", "configs/toy.yaml", *SMALL, *models]
    command += [f"run_dir={tmp_path / 'run'}", f"data.root={toy_data}"]
    log, others = tmp_path / "log", actors().keys()
    with log.open("wb") as output:
        stage = subprocess.Popen(command, cwd=REPOSITORY, env=local_head.env, stdout=output, stderr=output)
    while "grpo step 1/50" not in log.read_text():
        assert stage.poll() is None, log.read_text()
        time.sleep(0.2)
    assert actors().keys() - others
    while moment == "while it saves" and not any(any((tmp_path / "run").glob(pattern)) for pattern in UNFINISHED):
        assert stage.poll() is None, log.read_text()
    stage.send_signal(signal.SIGTERM)
    assert stage.wait(120) == 143
    *_, last = log.read_text().splitlines()
    assert last.startswith(f"SIGTERM: stopping; kept in {tmp_path / 'run'}: ") and "checkpoints/step-" in last, last
    deadline = time.monotonic() + 60
    while left := actors().keys() - others:
        assert time.monotonic() < deadline, left
        time.sleep(0.2)
