"""Stage 2 with its run folder at a URL, killed at any frame or without its store, ends elsewhere in the same bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from pretended_ray import PretendedRay
from scripted_stage import Members, Stage, stage_config

from actors.rewards import RewardWorkerActor
from vsr1.ledger import Frame
from vsr1.runs.mirror import bring, mirrored
from vsr1.search.rewards import SearchRewards
from vsr1.settings.training import RewardConfig
from vsr1.storage import cache_at, place_of
from vsr1.stores import StorageError

MEMORY = fsspec.filesystem("memory")
pytestmark = pytest.mark.usefixtures("quick_memory")
SMALL: dict[str, Any] = {"steps": 4, "prompts_per_step": 2, "state_every": 1}


class DriverKilledError(BaseException):
    """The end of a driver's machine."""


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str, str], Stage]:
    """Makes a stage of the run of a URL on a disk."""
    cluster = PretendedRay(monkeypatch)
    members = Members(cluster.actor, stage_config(tmp_path))
    rewards = [cluster.actor(RewardWorkerActor(SearchRewards(RewardConfig())))]

    def on_disk(name: str, disk: str) -> Stage:
        with cache_at(tmp_path / disk):
            return Stage(stage_config(place_of(f"memory://runs/{name}") or tmp_path, **SMALL), members, rewards)

    return on_disk


def at(count: int) -> Callable[[Frame], None]:
    """Raise at that frame, counted from 1."""
    frames = iter(range(1, count + 1))

    def on_frame(frame: Frame) -> None:
        if next(frames, None) == count:
            raise DriverKilledError

    return on_frame


def test_a_machine_lost_at_any_frame_costs_no_sample(stage: Callable[[str, str], Stage]) -> None:
    whole, frames = stage("whole", "one"), []
    whole.after_frame = frames.append  # type: ignore[assignment]
    weights = whole.run()
    went_on = 0
    for count in range(1, len(frames) + 1, 3):
        first, second = stage(f"{count}", f"{count}"), stage(f"{count}", f"{count} again")
        first.on_frame = at(count)
        with pytest.raises(DriverKilledError):
            first.run()
        run = second.config.run_dir
        bring(run, "grpo")
        went_on += any(run.glob("state/grpo/step-*"))
        with mirrored(run, "grpo"):
            assert (second.run(), second.trained) == (weights, whole.trained), count
        third = stage(f"{count}", f"{count} once more")
        bring(third.config.run_dir, "grpo")
        assert third.trained == whole.trained
    assert 0 < went_on < count


@pytest.mark.parametrize("request_number", [1, 5, 9, 14, 20, 30])
def test_a_store_that_is_gone_ends_the_stage_with_its_state(
    stage: Callable[[str, str], Stage], monkeypatch: pytest.MonkeyPatch, request_number: int
) -> None:
    weights = stage("whole", "one").run()
    broken, put, requests = stage("broken", "one"), type(MEMORY).put_file, []

    def put_until(self: Any, *names: str, **options: Any) -> None:
        requests.append(names)
        if len(requests) >= request_number:
            raise ConnectionResetError("gone")
        put(self, *names, **options)

    with monkeypatch.context() as patch, pytest.raises(StorageError, match="the same command goes on from it there"):
        patch.setattr(type(MEMORY), "put_file", put_until)
        broken.run()
    assert any(broken.config.run_dir.glob("state/grpo/step-*"))
    with mirrored(broken.config.run_dir, "grpo"):
        assert broken.run() == weights
    again = stage("broken", "two")
    bring(again.config.run_dir, "grpo")
    assert again.trained == broken.trained and len(again.trained) == 16
