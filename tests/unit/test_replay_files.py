"""What a replay reads of a run folder: the steps of a file, one at a time, and the configuration that belongs to it."""

import gc
import weakref
from pathlib import Path

import pytest
from search_episodes import search_trajectory, search_turn

from pipelines.evaluation.replay.command import steps_of
from vsr1.config import ConfigError
from vsr1.runs.folder import config_of
from vsr1.runs.trajectories import LoggedTrajectory, append_trajectories


def logged(step: int, query: str, seed: int = 0) -> LoggedTrajectory:
    return LoggedTrajectory(search_trajectory(query, [search_turn(1, "v", seed=seed)]), step)


def steps(tmp_path: Path, *rows: LoggedTrajectory) -> list[tuple[int, list[str]]]:
    path = tmp_path / "train_trajectories.jsonl"
    path.unlink(missing_ok=True)
    append_trajectories(path, rows)
    return [(members[0].step, [member.trajectory.task.query_id for member in members]) for members in steps_of(path)]


def test_of_a_step_that_two_runs_wrote_the_last_counts(tmp_path: Path) -> None:
    first, second = [logged(1, "a"), logged(1, "b"), logged(2, "b")], [logged(1, "a"), logged(1, "c")]
    assert steps(tmp_path, *first, *second) == [(2, ["b"]), (1, ["a", "c"])]
    assert steps(tmp_path, logged(1, "a"), logged(1, "a")) == [(1, ["a"])]  # one step, twice in a row
    assert steps(tmp_path, logged(1, "a"), logged(1, "a", seed=5)) == [(1, ["a", "a"])]  # one query, twice in a step
    assert steps(tmp_path) == []


def test_one_step_is_held_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "train_trajectories.jsonl"
    append_trajectories(path, [logged(step, query) for step in (1, 2, 3) for query in "ab"])
    reader = steps_of(path)
    earlier = weakref.ref(next(reader)[0])
    assert [member.step for member in next(reader)] == [2, 2]
    gc.collect()
    assert earlier() is None


def test_the_configuration_is_that_of_the_stage_that_wrote_the_file(tmp_path: Path) -> None:
    for name in ("train_trajectories.jsonl", "before.trajectories.jsonl", "before-text.trajectories.jsonl"):
        (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=r"holds no config of before\.trajectories.jsonl; give the run's own"):
        config_of(tmp_path / "before.trajectories.jsonl")
    for name in ("config.yaml", "config.grpo.yaml", "config.before.yaml"):
        (tmp_path / name).touch()
    assert config_of(tmp_path / "train_trajectories.jsonl").name == "config.grpo.yaml"
    assert config_of(tmp_path / "before-text.trajectories.jsonl").name == "config.before.yaml"
    (tmp_path / "config.before.yaml").unlink()
    assert config_of(tmp_path / "before.trajectories.jsonl").name == "config.yaml"
