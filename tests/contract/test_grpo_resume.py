"""Stage 2 with real engines and ranks, its driver killed: the same command goes on and trains each sample once."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from vsr1.runs.events import EVENTS, read_events
from vsr1.runs.folder import TRAINING_LOG
from vsr1.runs.trajectories import read_log

REPOSITORY = Path(__file__).parents[2]
STEPS, PROMPTS, SIZE, KILLS = 8, 2, 3, 2
pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]


def _command(run: Path, data: Path) -> list[str]:
    models = [f"model.{name}={REPOSITORY / 'checkpoints/toy' / name}" for name in ("policy", "embedder")]
    return [
        sys.executable, "-m", "pipelines", "grpo", "--config", "configs/toy.yaml", f"run_dir={run}",
        f"data.root={data}", *models, f"grpo.steps={STEPS}", f"grpo.prompts_per_step={PROMPTS}",
        f"grpo.group_size={SIZE}", "grpo.validate_every=null", "grpo.state_every=2", "grpo.learner.ranks=1",
        "retrieval.shards=1", "cluster.rollout.memory_gib=1", "cluster.learner.memory_gib=0.5",
    ]  # fmt: skip


def _kill(process: subprocess.Popen[str]) -> None:
    """End a driver and its Ray as a machine that stops does."""
    tree = [*psutil.Process(process.pid).children(recursive=True), process]
    os.kill(process.pid, signal.SIGKILL)
    for one in tree[:-1]:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()


def _journals(run: Path) -> dict[int, Path]:
    return {int(path.stem): path for path in (run / "ledger").glob("*.journal")}


def _trained(run: Path) -> list[tuple[str, int]]:
    path = run / TRAINING_LOG
    return [(one.trajectory.id.prompt, one.trajectory.id.sample) for one in read_log(path)] if path.is_file() else []


def test_a_killed_driver_goes_on_and_trains_each_sample_once(tmp_path: Path, toy_data: Path) -> None:
    run, draw = tmp_path / "run", random.Random(0)
    command = _command(run, toy_data)
    for _ in range(KILLS):
        before = max(_journals(run), default=-1)
        process = subprocess.Popen(command, cwd=REPOSITORY, text=True)
        deadline = time.monotonic() + 400
        while process.poll() is None and time.monotonic() < deadline:
            newest = max(_journals(run), default=-1)
            if newest > before and _journals(run)[newest].stat().st_size > 200:  # it plays
                break
            time.sleep(0.05)
        time.sleep(draw.uniform(1, 4))
        assert process.poll() is None
        _kill(process)
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    trained = Counter(_trained(run))
    assert set(trained.values()) == {1} and len(trained) == STEPS * PROMPTS * SIZE
    resumed = [event for event in read_events(run / EVENTS) if event["kind"] == "resumed"]
    assert len(resumed) == KILLS and any(event["finished_turns"] for event in resumed)
    again = subprocess.run([*command, "seed=5"], cwd=REPOSITORY, capture_output=True, text=True, timeout=200)
    assert again.returncode == 1 and "seed was 0, is 5" in again.stdout + again.stderr
