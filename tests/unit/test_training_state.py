"""States of a stage: whole or not there, the last two kept, refused under other settings."""

from pathlib import Path

import pytest

from vsr1.runs.state import StateError, StateFolder


def _save(states: StateFolder, step: int, settings: dict) -> None:
    with states.saving(step, settings) as part:
        assert part == states.part(step)
        (part / "weights").write_text(str(step))


def test_the_last_two_states_are_kept_and_the_newest_is_found(tmp_path: Path) -> None:
    states = StateFolder(tmp_path / "state" / "sft")
    assert states.newest() is None
    for step in (2, 9, 10):
        _save(states, step, {})
    assert sorted(folder.name for folder in states.root.iterdir()) == ["step-10", "step-9"]
    step, folder = states.newest()
    assert step == 10 and (folder / "weights").read_text() == "10"


def test_a_state_that_was_not_ended_is_not_found(tmp_path: Path) -> None:
    states = StateFolder(tmp_path)
    with pytest.raises(OSError, match="no space"), states.saving(4, {}) as part:
        (part / "weights").write_text("half")
        raise OSError("no space")
    assert states.newest() is None and not list(tmp_path.iterdir())
    _save(states, 4, {})
    assert states.newest() == (4, tmp_path / "step-4")


def test_every_setting_that_differs_is_named(tmp_path: Path) -> None:
    states = StateFolder(tmp_path)
    settings = {"seed": 1, "sft": {"batch_size": 8, "learner": {"ranks": 2}}}
    _save(states, 1, settings)
    _, folder = states.newest()
    states.check(folder, settings, {})
    with pytest.raises(StateError) as refused:
        states.check(folder, {"seed": 2, "sft": {"batch_size": 8, "learner": {"ranks": 4}, "new": True}}, {})
    for part in ("seed was 1, is 2", "sft.learner.ranks was 2, is 4", "sft.new was 'not set', is True", "run_dir"):
        assert part in str(refused.value), part


def test_a_setting_that_is_free_may_differ(tmp_path: Path) -> None:
    states = StateFolder(tmp_path, free=["grpo.ranks"])
    _save(states, 1, {"grpo": {"ranks": 2, "ranks_more": 1}})
    assert states.claim({"grpo": {"ranks": 1, "ranks_more": 1}}, {}) is not None
    with pytest.raises(StateError, match=r"settings: grpo\.ranks_more was 1, is 2\. Restore"):
        states.claim({"grpo": {"ranks": 1, "ranks_more": 2}}, {})


def test_a_setting_that_got_a_new_name_is_the_same_setting(tmp_path: Path) -> None:
    states = StateFolder(tmp_path)
    _save(states, 1, {"sft": {"loss": {"negatives": 24}}})
    _, folder = states.newest()
    renamed = {"sft.loss.negatives": "sft.negatives"}
    states.check(folder, {"sft": {"negatives": 24}}, renamed)
    with pytest.raises(StateError, match=r"sft\.negatives was 24, is 25"):
        states.check(folder, {"sft": {"negatives": 25}}, renamed)


def test_a_state_of_before_a_setting_was_there_has_its_default(tmp_path: Path) -> None:
    states = StateFolder(tmp_path)
    _save(states, 1, {"sft": {"batch_size": 8}})
    defaults = {"sft": {"batch_size": 16, "warmup_steps": 0, "other": 1}}
    assert states.claim({"sft": {"batch_size": 8, "warmup_steps": 0}}, {}, defaults) is not None
    with pytest.raises(StateError, match=r"settings: sft\.warmup_steps was 0, is 5\. Restore"):
        states.claim({"sft": {"batch_size": 8, "warmup_steps": 5}}, {}, defaults)


def test_as_many_states_are_kept_as_are_wanted(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        _save(StateFolder(tmp_path, keep=3), step, {})
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["step-2", "step-3", "step-4"]
