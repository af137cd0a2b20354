"""`vsr1 submit` and `vsr1 stop` on a head with token authentication: what runs, and what is refused before it does."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[3]
MODELS = [f"model.{name}=checkpoints/toy/{name}" for name in ("policy", "embedder")]
SMALL = [
    "grpo.steps=50", "grpo.state_every=100", "grpo.validate_every=null", "grpo.prompts_per_step=2", "grpo.group_size=3",
    "grpo.learner.ranks=1", "retrieval.shards=1", "cluster.rollout.memory_gib=1", "cluster.learner.memory_gib=0.5",
]  # fmt: skip


def vsr1(head: Any, *arguments: str, change: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipelines", *arguments]
    env = head.env | (change or {})
    return subprocess.run(command, env=env, cwd=REPOSITORY, capture_output=True, text=True, timeout=280)


def test_a_dataset_is_built_by_a_job_and_its_log_is_followed(local_head: Any, corpus: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(corpus, tmp_path / "toy"))
    place = [f"run_dir={tmp_path / 'run'}", f"data.root={root}"]
    result = vsr1(local_head, "submit", "data", "-c", "configs/toy.yaml", "data.splits=[train,test]", *place, *MODELS)
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("upload: ") and "SUCCEEDED" in lines[-1]
    assert any(root.rglob("index.faiss"))
    assert not list((tmp_path / "run").glob(".seen-*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cluster.learner.gpus=99"], r"one learner rank needs 99 GPUs, the largest node of the cluster at .* has 0: "),
        (["run_dir=runs/here"], r"run_dir=.*runs/here lies in the job's copy of the working folder"),
    ],
)
def test_what_does_not_fit_the_cluster_is_refused_before_the_stage_starts(
    local_head: Any, tmp_path: Path, arguments: list[str], message: str
) -> None:
    result = vsr1(local_head, "submit", "sft", f"run_dir={tmp_path / 'run'}", f"data.root={tmp_path}", *arguments)
    assert result.returncode == 1
    assert re.search(message, result.stdout), result.stdout + result.stderr
    assert "FAILED" in result.stdout.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_a_wrong_token_is_refused(local_head: Any, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("0" * 64)
    result = vsr1(local_head, "submit", "sft", "--token-file", str(tmp_path / "token"))
    assert result.returncode == 1
    assert "refuses this token" in result.stderr and "--token-file" in result.stderr, result.stderr


def test_a_token_that_only_its_path_names_is_shown(local_head: Any) -> None:
    """Ray's own clients leave it unused without RAY_AUTH_MODE."""
    result = vsr1(local_head, "stop", "nothing", change={"RAY_AUTH_MODE": ""})
    assert "no job runs that is called nothing or works there: running are: " in result.stderr, result.stderr


@pytest.mark.chaos
@pytest.mark.timeout(800)
def test_a_stopped_stage_2_has_saved_its_state_and_goes_on_from_it(
    local_head: Any, toy_data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = ["submit", "grpo", "-c", "configs/toy.yaml", *SMALL, *MODELS, f"run_dir={run}", f"data.root={toy_data}"]
    begin_and_wait_for(local_head, command, run, step=1)
    second = vsr1(local_head, *command)
    assert second.returncode == 1 and f"works in run_dir={run}" in second.stderr, second.stdout + second.stderr
    assert not list(run.glob("state/grpo/step-*")), "it saves none by itself in this run"
    ended = vsr1(local_head, "stop", str(run))
    assert ended.returncode == 0 and "STOPPED; SIGTERM: stopping; kept in" in ended.stdout, ended.stdout + ended.stderr
    [state] = run.glob("state/grpo/step-*")
    taken = int(state.name.removeprefix("step-"))
    begin_and_wait_for(local_head, command, run, step=taken + 1)
    assert "STOPPED" in vsr1(local_head, "stop", str(run)).stdout
    assert steps(run)[: taken + 1] == list(range(1, taken + 2))


def begin_and_wait_for(head: Any, command: list[str], run: Path, step: int) -> None:
    begun = vsr1(head, *command, "--no-wait")
    assert begun.returncode == 0, begun.stdout + begun.stderr
    deadline = time.monotonic() + 280
    while step not in steps(run):
        assert time.monotonic() < deadline, list(run.rglob("*"))
        time.sleep(0.5)


def steps(run: Path) -> list[int]:
    path = run / "scalars.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return sorted({row["step"] for row in rows if row["stage"] == "grpo"})
