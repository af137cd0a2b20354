"""The loop of Stage 2 is killed wherever it writes: nothing is lost, nothing is trained twice, and no bit differs."""

import _thread
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pretended_ray import PretendedRay
from scripted_stage import Members, ScriptedLearner, Stage, stage_config
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from actors.rewards import RewardWorkerActor
from vsr1.ledger import Frame
from vsr1.runs.events import EVENTS, read_events
from vsr1.runs.scalars import read_scalars
from vsr1.search.rewards import SearchRewards
from vsr1.settings.training import RewardConfig


class DriverKilledError(BaseException):
    """The end of a driver's process, as far as its files are concerned."""


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> PretendedRay:
    return PretendedRay(monkeypatch)


@pytest.fixture
def rewards(cluster: PretendedRay) -> list[Any]:
    return [cluster.actor(RewardWorkerActor(SearchRewards(RewardConfig())))]


@pytest.fixture
def fleet(cluster: PretendedRay, tmp_path: Path) -> Callable[[], Members]:
    return lambda: Members(cluster.actor, stage_config(tmp_path))


def once_each(stage: Stage) -> list[tuple[str, int]]:
    """What was trained, each once."""
    samples = [(prompt, sample) for prompt, sample, _ in stage.trained]
    assert max(Counter(samples).values()) == 1
    return sorted(samples)


def at(count: int, error: BaseException) -> Callable[[Frame], None]:
    """Raise at that frame, counted from 1."""
    frames = iter(range(1, count + 1))

    def on_frame(frame: Frame) -> None:
        if next(frames, None) == count:
            raise error

    return on_frame


@pytest.mark.parametrize("staleness", [0, 1])
def test_a_driver_killed_at_any_frame_goes_on_to_the_same_end(
    tmp_path: Path, fleet: Callable[..., Members], rewards: list[Any], staleness: int
) -> None:
    """Every frame of a run is a kill point, before it is written or after; the end of the journal is torn."""
    members = fleet()
    small = {"staleness": staleness, "steps": 3, "prompts_per_step": 2}
    whole = Stage(stage_config(tmp_path / "whole", **small), members, rewards)
    frames: list[Frame] = []
    whole.after_frame = frames.append
    weights, expected = whole.run(), once_each(whole)
    assert len(expected) == 12 and not whole.ledger.open
    kills = 0
    for count in range(1, len(frames) + 1, 2 * staleness + 1):
        stage = Stage(stage_config(tmp_path / f"{count}", **small), members, rewards)
        if count % 2:
            stage.on_frame = at(count, DriverKilledError())
        else:
            stage.after_frame = at(count, DriverKilledError())
        for attempt in range(3):  # the run that goes on is killed a while later, and the third one is not
            try:
                end = stage.run()
                break
            except DriverKilledError:
                kills += 1
                _tear(stage.config.run_dir, random.Random(count))
                stage.on_frame = at(10 + count % 40, DriverKilledError()) if attempt == 0 else lambda frame: None
                stage.after_frame = lambda frame: None
        assert once_each(stage) == expected, count
        if staleness == 0:
            assert (end, stage.trained) == (weights, whole.trained), count
        shutil.rmtree(stage.config.run_dir)
    assert kills > len(frames) / (2 * staleness + 1) > 20


def _tear(run_dir: Path, draw: random.Random) -> None:
    """Cut some bytes off the newest journal, as a machine that stops may."""
    path = max((run_dir / "ledger").glob("*.journal"), key=lambda path: int(path.stem))
    os.truncate(path, max(0, path.stat().st_size - draw.choice([0, 0, 1, 30, 300])))


@pytest.mark.parametrize("staleness", [0, 1])
def test_five_hundred_killed_members_cost_nothing(
    tmp_path: Path, fleet: Callable[..., Members], rewards: list[Any], cluster: PretendedRay, staleness: int
) -> None:
    """Workers are killed where a sample begins, ends a turn or has ended; also those that play others."""
    config = stage_config(tmp_path / "whole", staleness=staleness, steps=30)
    whole, kills, run = Stage(config, fleet(), rewards), Counter[str](), 0
    weights, expected = whole.run(), once_each(whole)
    while kills.total() < 500:
        run += 1
        members, draw = fleet(), random.Random(run)

        def kill(frame: Frame, members: Members = members, draw: random.Random = draw) -> None:
            if frame["kind"] in ("running", "turn", "finished") and draw.random() < 0.2:
                kills[frame["kind"]] += 1
                members.kill(frame["member"] if "member" in frame else draw.choice(members.members).name)

        settings = {"staleness": staleness, "steps": 30, "poison_deaths": 1000}
        stage = Stage(stage_config(tmp_path / f"{run}", **settings), members, rewards, after_frame=kill)
        end = stage.run()
        assert once_each(stage) == expected
        if staleness == 0:
            assert (end, stage.trained) == (weights, whole.trained)
        assert members.deaths > 50
    assert min(kills[kind] for kind in ("running", "turn", "finished")) > 50


def test_a_reward_worker_that_dies_is_asked_again(
    tmp_path: Path, fleet: Callable[..., Members], rewards: list[Any]
) -> None:
    whole = Stage(stage_config(tmp_path / "whole"), fleet(), rewards)
    weights = whole.run()
    stage = Stage(stage_config(tmp_path / "killed"), fleet(), rewards)

    def kill(frame: Frame) -> None:
        if frame["kind"] == "finished" and frame["sample"] == 0:
            rewards[0].deaths = 1

    stage.after_frame = kill
    assert (stage.run(), stage.trained) == (weights, whole.trained)


def test_a_prompt_that_kills_its_workers_is_dropped_and_the_run_goes_on(
    tmp_path: Path, fleet: Callable[..., Members], rewards: list[Any]
) -> None:
    """Its neighbours die with it at first; then it is played alone, and only its own group goes."""
    members = fleet()
    stage = Stage(stage_config(tmp_path / "run", max_failed_fraction=0.5), members, rewards, poison=4)
    stage.run()
    assert once_each(stage) == [
        (f"0/{number}/q{number}", sample) for number in (0, 1, 10, 11, 2, 3, 5, 6, 7, 8, 9) for sample in range(2)
    ]
    assert members.deaths <= 4
    assert stage.ledger.closed == Counter({"trained": 22, "poison": 2})


@pytest.mark.parametrize("last", [False, True])
def test_a_full_disk_during_a_commit_leaves_the_one_before(
    tmp_path: Path, fleet: Callable[..., Members], rewards: list[Any], last: bool
) -> None:
    members = fleet()
    whole = Stage(stage_config(tmp_path / "whole"), members, rewards)
    weights = whole.run()
    stage = Stage(stage_config(tmp_path / "full"), members, rewards)
    stage.learner.fails_at = 4 if last else 2
    with pytest.raises(OSError, match="No space left on device"):
        stage.run()
    states = [path.name for path in (stage.config.run_dir / "state" / "grpo").glob("step-*")]
    assert states == (["step-2"] if last else [])
    stage.learner = ScriptedLearner()
    played = 0

    def count(frame: Frame) -> None:
        nonlocal played
        played += frame["kind"] == "turn"

    stage.after_frame = count
    assert (stage.run(), stage.trained) == (weights, whole.trained)
    assert (played == 0) == last  # all rollouts of the steps that were lost are in the journal


def test_a_run_that_is_over_takes_no_further_step(
    tmp_path: Path, fleet: Callable[..., Members], rewards: list[Any]
) -> None:
    stage = Stage(stage_config(tmp_path / "run"), fleet(), rewards)
    weights, trained = stage.run(), stage.trained
    assert (stage.run(), stage.trained) == (weights, trained)


def test_ctrl_c_saves_the_last_whole_step(tmp_path: Path, fleet: Callable[..., Members], rewards: list[Any]) -> None:
    stage = Stage(stage_config(tmp_path / "run", state_every=100), fleet(), rewards)

    def interrupt(frame: Frame) -> None:
        if frame["kind"] == "turn" and frame["prompt"].startswith("0/7/"):  # in the third step
            raise KeyboardInterrupt

    stage.on_frame = interrupt
    with pytest.raises(KeyboardInterrupt):
        stage.run()
    assert [path.name for path in (stage.config.run_dir / "state" / "grpo").glob("step-*")] == ["step-2"]


@pytest.mark.parametrize("staleness", [0, 1])
def test_ctrl_c_while_the_learner_works_saves_the_step_that_it_takes(
    tmp_path: Path, fleet: Callable[..., Members], rewards: list[Any], staleness: int
) -> None:
    undisturbed = Stage(stage_config(tmp_path / "undisturbed", staleness=staleness), fleet(), rewards)
    weights = undisturbed.run()

    class Interrupted(ScriptedLearner):
        def step(self, examples: list[Any], rate: float) -> dict[str, float]:
            if self.steps == 2 and stage.learner is self:
                _thread.interrupt_main()
                time.sleep(0.3)
            return super().step(examples, rate)

    stage = Stage(stage_config(tmp_path / "run", state_every=100, staleness=staleness), fleet(), rewards)
    stage.learner = Interrupted()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
    with pytest.raises(KeyboardInterrupt):
        stage.run()
    signal.signal(signal.SIGINT, before)
    assert [path.name for path in (stage.config.run_dir / "state" / "grpo").glob("step-*")] == ["step-3"]
    stage.learner = ScriptedLearner()
    went_on = stage.run()
    samples = [one[:2] for one in stage.trained]
    assert len(set(samples)) == len(samples) == len(undisturbed.trained), "each once, and none is lost"
    assert staleness or (went_on, stage.trained) == (weights, undisturbed.trained)


def test_a_new_corpus_is_seen_by_new_episodes_and_one_that_went_on_keeps_its_own(
    tmp_path: Path, fleet: Callable[..., Members], rewards: list[Any]
) -> None:
    """The index is swapped in the second step, with rollouts a step ahead; each trajectory names one version."""
    members = fleet()
    stage = Stage(stage_config(tmp_path / "run", staleness=1), members, rewards)

    def swap(frame: Frame) -> None:
        if frame["kind"] == "trained" and frame["step"] == 2:
            for member in members.members:
                member.handle.set_index.remote("i2")

    stage.after_frame = swap
    stage.run()
    from vsr1.runs.trajectories import read_log

    seen = []
    for logged in read_log(stage.config.run_dir / "train_trajectories.jsonl"):
        versions = {turn.record.index_version for turn in logged.trajectory.turns}
        assert len(versions) == 1
        seen += [(logged.step, *versions)]
    assert {version for step, version in seen if step == 1} == {"i1"}
    assert {version for step, version in seen if step == 4} == {"i2"}
    assert any(event["kind"] == "corpus changed" for event in read_events(stage.config.run_dir / EVENTS))


def test_an_episode_whose_corpus_is_gone_begins_anew(
    tmp_path: Path, fleet: Callable[..., Members], rewards: list[Any]
) -> None:
    members = fleet()
    stage = Stage(stage_config(tmp_path / "run"), members, rewards)
    stage.after_frame = at(40, DriverKilledError())
    with pytest.raises(DriverKilledError):
        stage.run()
    for member in members.members:
        member.handle.set_index.remote("i2 only")
    stage.after_frame = lambda frame: None
    stage.run()
    assert len(once_each(stage)) == 24
    assert "failed_samples" in {row["name"] for row in read_scalars(stage.config.run_dir / "scalars.jsonl")}


@pytest.mark.parametrize("late", ["wait", "drop"])
def test_no_sample_is_older_than_the_bound_and_waiting_drops_none(
    tmp_path: Path, fleet: Callable[..., Members], rewards: list[Any], late: str
) -> None:
    members = fleet()
    config = stage_config(tmp_path / "run", staleness=2, late=late, steps=8, prompts_per_step=2)
    stage = Stage(config, members, rewards)
    stage.run()
    rows = {(row["step"], row["name"]): row["value"] for row in read_scalars(config.run_dir / "scalars.jsonl")}
    assert all(rows[step, "staleness/most"] <= 2 for step in range(1, 9))
    assert max(rows[step, "staleness/most"] for step in range(1, 9)) >= 1
    dropped = sum(rows[step, "groups/stale"] for step in range(1, 9))
    if late == "wait":
        assert dropped == 0 and len(once_each(stage)) == 32
    else:
        assert stage.ledger.closed["trained"] == len(once_each(stage))


def test_curves_of_a_run_that_was_killed_show_each_step_once(
    tmp_path: Path, fleet: Callable[..., Members], rewards: list[Any]
) -> None:
    """Step 3 is logged and in no state when the driver dies, and comes again."""
    stage = Stage(stage_config(tmp_path / "run"), fleet(), rewards)
    path = stage.config.run_dir / "scalars.jsonl"

    def die(frame: Frame) -> None:
        if path.is_file() and any(row["step"] == 3 for row in read_scalars(path)):
            raise DriverKilledError

    stage.on_frame = die
    with pytest.raises(DriverKilledError):
        stage.run()
    stage.on_frame = lambda frame: None
    time.sleep(1.1)  # files of events are read in the order of their names, which begin with the second of their start
    stage.run()
    assert [row["step"] for row in read_scalars(path) if row["name"] == "turns"] == [1, 2, 3, 3, 4]
    board = EventAccumulator(str(stage.config.run_dir / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("grpo/turns")] == [1, 2, 3, 4]
