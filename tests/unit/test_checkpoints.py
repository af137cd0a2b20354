"""Checkpoints on the way: as many as are wanted, and the best."""

import json
from pathlib import Path

from vsr1.runs.checkpoints import Best, remove_older


def test_the_newest_are_kept_by_their_number(tmp_path: Path) -> None:
    for name in ("step-2", "step-9", "step-10", "step-11", "best", "grpo"):
        (tmp_path / name).mkdir()
    remove_older(tmp_path, None)
    assert len(list(tmp_path.iterdir())) == 6
    remove_older(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "grpo", "step-10", "step-11"]
    remove_older(tmp_path, 5)
    assert (tmp_path / "step-10").is_dir()


def test_the_best_is_saved_when_it_is_better_and_remembered_by_a_run_that_goes_on(tmp_path: Path) -> None:
    saved: list[Path] = []
    best = Best(tmp_path / "best", saved.append)
    for step, value in ((1, -2.0), (2, -1.0), (3, -1.0), (4, -1.5)):
        best.offer(step, value)
    assert saved == [tmp_path / "best"] * 2
    assert json.loads((tmp_path / "best.json").read_text()) == {"step": 2, "value": -1.0}
    later = Best(tmp_path / "best", saved.append, notes=False)
    later.offer(5, -1.2)
    assert len(saved) == 2
    later.offer(6, 0.0)
    assert len(saved) == 3 and json.loads((tmp_path / "best.json").read_text())["step"] == 2
