"""`vsr1 scale`: a request reaches the run that is there, and nobody else."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from vsr1.runs.folder import owned
from vsr1.runs.scale import ScaleError, ScaleRequest, ask_scale, read_scale


def test_a_running_training_is_asked_and_a_second_request_is_another(tmp_path: Path) -> None:
    assert read_scale(tmp_path) is None
    with owned(tmp_path, "grpo"):
        result = CliRunner().invoke(app, ["scale", "rollouts=3", "--run-dir", str(tmp_path)])
        assert result.exit_code == 0, result.output
        assert read_scale(tmp_path) == ScaleRequest(3, 1)
        ask_scale(tmp_path, "rollouts=3")
    assert read_scale(tmp_path) == ScaleRequest(3, 2)


@pytest.mark.parametrize("target", ["rollouts=0", "rollouts=-1", "rollouts=two", "rollouts", "rewards=2", ""])
def test_what_is_no_number_of_rollout_workers_is_refused(tmp_path: Path, target: str) -> None:
    with owned(tmp_path, "grpo"), pytest.raises(ScaleError, match="write rollouts=3"):
        ask_scale(tmp_path, target)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ScaleError, match="no training runs"):
        ask_scale(tmp_path, "rollouts=2")
    with owned(tmp_path, "grpo"):
        pass
    with pytest.raises(ScaleError, match="no training runs"):
        ask_scale(tmp_path, "rollouts=2")
    assert not (tmp_path / "scale.json").exists()
