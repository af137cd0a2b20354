"""A run replays clean, and each value that was tampered with is named by its stage."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import copyfile
from typing import Any

import pytest
import torch

from pipelines.evaluation.replay.command import Replayed, ReplayError, replay
from vsr1.config import Config, ConfigError, load_config
from vsr1.runs.folder import TRAINING_LOG, config_of

from .options import REPOSITORY

Row = dict[str, Any]

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture
def folder(run: Config) -> Path:
    return run.run_dir


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The toy policy is too small to share out, and threads that wait for each other are slow on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _config(log: Path) -> Config:
    return load_config(config_of(log))


def _of(row: Row) -> Row:
    return {"query": row["task"]["query_id"], "sample": row["task"]["id"]["sample"]}


def _statuses(one: Replayed) -> dict[str, str]:
    return {found.stage: found.status for found in one.findings}


def test_training_replays_clean_to_the_loss(folder: Path) -> None:
    log = folder / TRAINING_LOG
    done = replay(log, _config(log))
    assert [(one.step, one.sample) for one in done] == [(1, 0), (1, 1), (1, 2)] * 2 + [(2, 0), (2, 1), (2, 2)] * 2
    for one in done:
        assert set(_statuses(one).values()) == {"ok"}, one.findings
    assert any(json.loads(line)["advantages"][0]["tokens"] for line in log.read_text().splitlines())


def test_an_evaluation_replays_clean_and_has_nothing_learned(folder: Path) -> None:
    log = folder / "after.trajectories.jsonl"
    for one in replay(log, _config(log)):
        statuses = _statuses(one)
        assert (statuses.pop("advantage"), statuses.pop("grpo")) == ("not checked", "not checked")
        assert set(statuses.values()) == {"ok"}, one.findings


@pytest.fixture
def tampered(folder: Path, tmp_path: Path) -> Callable[..., Replayed]:
    """Replays the first trajectory of step 2 after a change of its row."""

    def replayed(change: Callable[[Row], None]) -> Replayed:
        for name in ("config.grpo.yaml", "scalars.jsonl", "train_trajectories.latents"):
            copyfile(folder / name, tmp_path / name)
        (tmp_path / "checkpoints").symlink_to(folder / "checkpoints")
        rows = [json.loads(line) for line in (folder / TRAINING_LOG).read_text().splitlines()]
        at = next(i for i, row in enumerate(rows) if row["step"] == 2)
        change(rows[at])
        log = tmp_path / TRAINING_LOG
        log.write_text("".join(json.dumps(row) + "\n" for row in rows))
        [one] = replay(log, _config(log), **_of(rows[at]), step=2)
        return one

    return replayed


def _token(row: Row) -> None:
    row["turns"][0]["response_token_ids"][1] += 1


def _score(row: Row) -> None:
    row["turns"][0]["record"]["retrieved"][1][1] += 0.01


def _rank(row: Row) -> None:
    row["turns"][0]["record"]["gt_rank_before"] += 1


def _reward(row: Row) -> None:
    row["reward"] += 0.25


def _advantage(row: Row) -> None:
    row["advantages"][0]["tokens"] += 0.5


def _logprob(row: Row) -> None:
    row["turns"][0]["response_logprobs"][2] -= 0.125


def _prompt(row: Row) -> None:
    row["turns"][0]["prompt_token_ids"][0] += 1


def _clip(row: Row) -> None:
    row["turns"][0]["clips"][0][1] = "0" * 64


@pytest.mark.parametrize(
    ("change", "stage", "says"),
    [
        (_clip, "clip", "turn 1, content of clip"),
        (_prompt, "prompt", "turn 1, prompt tokens, place 0: recorded"),
        (_token, "parse", "turn 1, text of the reply's tokens, place"),
        (_score, "retrieval", "turn 1, retrieved, scores of the videos: differs by 0.01 at most"),
        (_rank, "retrieval", "rank of the right video"),
        (_reward, "rewards", "reward: differs by 0.25 at most"),
        (_advantage, "advantage", "advantages of tokens, by turn: differs by 0.5 at most"),
        (_logprob, "logprobs", "turn 1, log-probs: differs by 0.125 at most"),
    ],
)
def test_what_was_tampered_with_is_the_first_to_differ(
    tampered: Callable[..., Replayed], change: Callable[[Row], None], stage: str, says: str
) -> None:
    one = tampered(change)
    assert one.first is not None
    assert (one.first.stage, says in one.first.detail) == (stage, True), one.findings


def test_a_loss_that_is_not_the_one_in_the_log_differs(folder: Path, tampered: Callable[..., Replayed]) -> None:
    """Of the second step, whose weights are those of a checkpoint."""
    scalars = folder / "scalars.jsonl"
    kept = scalars.read_text()
    rows = [json.loads(line) for line in kept.splitlines()]
    for row in rows:
        row["value"] += 0.5 * (row["name"] == "loss" and row["step"] == 2)
    scalars.write_text("".join(json.dumps(row) + "\n" for row in rows))
    try:
        one = tampered(lambda row: None)
    finally:
        scalars.write_text(kept)
    assert one.first is not None and one.first.stage == "grpo" and "loss of step 2: differs by 0.5" in one.first.detail


def test_weights_that_were_not_kept_are_named(folder: Path, tampered: Callable[..., Replayed]) -> None:
    kept = folder / "checkpoints" / "step-1"
    kept.rename(kept.with_name("gone"))
    try:
        one = tampered(lambda row: None)
    finally:
        kept.with_name("gone").rename(kept)
    assert one.first is None
    last = one.findings[-1]
    assert (last.stage, last.status) == ("grpo", "not checked")
    assert last.detail == "the weights of version 1 were not kept (grpo.save_every)"
    assert _statuses(one)["advantage"] == "ok"


def test_trajectories_of_a_step_that_was_killed_are_not_called_wrong(folder: Path, tmp_path: Path) -> None:
    """Of the last step the file has two samples of a group of three, and a piece of the third."""
    for name in ("config.grpo.yaml", "scalars.jsonl", "train_trajectories.latents"):
        copyfile(folder / name, tmp_path / name)
    (tmp_path / "checkpoints").symlink_to(folder / "checkpoints")
    lines = (folder / TRAINING_LOG).read_text().splitlines(keepends=True)
    log = tmp_path / TRAINING_LOG
    log.write_text("".join(lines[:8]) + lines[8][:200])
    done = replay(log, _config(log), step=2)
    assert [(one.sample, one.first) for one in done] == [(0, None), (1, None)]
    for one in done:
        assert _statuses(one)["grpo"] == "not checked"
        assert "2 trajectories here are not known to be all of step 2" in one.findings[-1].detail


def test_what_is_not_there_is_answered_with_what_there_is(folder: Path) -> None:
    log = folder / "after.trajectories.jsonl"
    query = json.loads(log.read_text().splitlines()[0])["task"]["query_id"]
    with pytest.raises(ReplayError, match=rf"no trajectory of .* fits; there is: query {query}, sample 0; "):
        replay(log, _config(log), query="nobody asked")
    with pytest.raises(ReplayError, match="--rerun plays greedy ones again"):
        replay(folder / TRAINING_LOG, _config(folder / TRAINING_LOG), rerun=True)
    with pytest.raises(ConfigError, match="does not exist"):
        config_of(folder / "nothing.trajectories.jsonl")


def test_the_command_says_it_with_its_exit_code(folder: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (folder / "after.trajectories.jsonl").read_text().splitlines()]
    _reward(rows[1])
    (tmp_path / "after.trajectories.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    copyfile(folder / "after.trajectories.latents", tmp_path / "after.trajectories.latents")
    copyfile(folder / "config.after.yaml", tmp_path / "config.yaml")
    command = [sys.executable, "-m", "pipelines", "replay", str(tmp_path / "after.trajectories.jsonl"), "--json"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1, done.stderr
    assert [one["first"] for one in json.loads(done.stdout)] == [None, "rewards"]
