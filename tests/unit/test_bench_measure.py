"""The frame of measurements: ratios within a round, numbers of four digits, the machine in every line."""

import json
import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench.commands import app
from bench.measure import Rounds, in_turn, line


def rounds(**seconds: list[float]) -> Rounds:
    taken = Rounds()
    taken.seconds.update(seconds)
    return taken


def test_a_ratio_and_a_difference_are_taken_within_a_round() -> None:
    taken = rounds(slow=[4.0, 12.0, 6.0], fast=[1.0, 6.0, 4.0])
    assert (taken.median("slow"), taken.median("fast")) == (6.0, 4.0)
    assert taken.ratio("slow", "fast") == 2.0, "6 / 4 would compare rounds in which the machine was not the same"
    assert taken.added("slow", "fast") == 3.0


def test_rounds_of_different_numbers_are_not_compared() -> None:
    with pytest.raises(ValueError, match="shorter"):
        rounds(slow=[4.0, 12.0], fast=[1.0]).ratio("slow", "fast")


def test_ways_are_timed_in_turn_after_a_warm_up() -> None:
    calls: list[str] = []
    taken = in_turn({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert calls == ["a", "b"] * 3
    assert {way: len(seconds) for way, seconds in taken.seconds.items()} == {"a": 2, "b": 2}


def test_a_block_that_fails_is_not_timed() -> None:
    taken = Rounds()
    with pytest.raises(ZeroDivisionError), taken.time("way"):
        raise ZeroDivisionError
    assert taken.seconds == {}


def test_a_line_names_the_machine_and_rounds_at_every_depth() -> None:
    printed = line("thing", {"count": 123_456, "s": 0.123456, "parts": {"a": [1234.56, 2]}, "same": True})
    assert "\n" not in printed
    found = json.loads(printed)
    assert list(found)[:7] == ["bench", "cpu", "cores", "memory_gib", "gpus", "torch", "vllm"]
    assert (found["bench"], found["count"], found["s"], found["same"]) == ("thing", 123_456, 0.1235, True)
    assert found["parts"] == {"a": [1235, 2]}
    assert found["cores"] >= 1 and found["memory_gib"] > 0 and found["cpu"]


def test_a_figure_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        line("thing", {"s": math.nan})


def test_every_measurement_has_a_command() -> None:
    names = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    assert names == {
        "latents",
        "parity",
        "weights",
        "data",
        "retrieval",
        "kills",
        "report",
        "serve",
        "faults",
        "fuzz",
        "learner",
        "rollout",
        "step",
        "push",
        "overlap",
        "heal",
        "soak",
        "restarts",
        "gradient",
        "navigate",
        "scale",
        "autoscaled",
        "find",
        "hosts",
        "join",
        "long_search",
        "navigate_arms",
        "tools",
    }
    refused = CliRunner().invoke(app, ["weights", "--way", "smoke"])
    assert refused.exit_code == 2 and "nccl" in refused.output


def test_a_command_prints_one_line_of_json_and_the_page_of_a_report_can_be_kept(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    printed = CliRunner().invoke(app, ["report", "--trajectories", "24", "--rounds", "2", "--out", str(page)])
    assert printed.exit_code == 0, printed.output
    [row] = printed.output.splitlines()
    figures = json.loads(row)
    assert (figures["bench"], figures["trajectories"], figures["videos"], figures["rounds"]) == ("report", 24, 24, 2)
    assert figures["build_seconds"] > 0
    assert figures["megabytes"] == pytest.approx(page.stat().st_size / 1e6, rel=1e-3)
