"""Commands that have moved say where they are."""

import pytest
from typer.testing import CliRunner

from pipelines.cli import app


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["bench", "retrieval", "--videos", "100"], "python -m bench"), (["bench", "--help"], "python -m bench"),
        (["toy", "bench", "-c", "configs/toy-bench.yaml"], "python -m bench toy"), (["toy"], "python -m bench toy"),
    ],
)  # fmt: skip
def test_a_moved_command_names_the_new_one(arguments: list[str], command: str) -> None:
    outcome = CliRunner().invoke(app, arguments)
    assert outcome.exit_code == 2
    [line] = outcome.stderr.splitlines()
    assert line == f"error: `vsr1 {arguments[0]}` is `{command}` now, in the folder of the repository"
    assert outcome.stdout == ""


def test_they_are_not_listed() -> None:
    names = [line.split()[1] for line in CliRunner().invoke(app, ["--help"]).stdout.splitlines() if line[:3] == "│ d"]
    assert sorted(names) == ["data", "demo", "doctor"]
