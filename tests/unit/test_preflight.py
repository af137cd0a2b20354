"""The preflight says in one line each what is missing, and parses on an old Python."""

import ast
import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / ".ci" / "preflight.py"
_spec = importlib.util.spec_from_file_location("preflight", PATH)
assert _spec is not None and _spec.loader is not None
preflight = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(preflight)

GIB = 1024**3
LINUX = {"system": "Linux", "machine": "x86_64"}


def failures(**changes):
    good = {
        "version": (3, 11, 7),
        "has_ensurepip": True,
        "uname": LINUX,
        "free_bytes": 8 * GIB,
        "folder": "/clone",
        "total_bytes": 10 * GIB,
    }
    return preflight.failures(**(good | changes))


def test_a_good_machine_has_no_failure():
    assert failures() == []
    assert failures(version=(3, 12, 0), uname={"system": "Linux", "machine": "aarch64"}) == []


def test_a_machine_sold_with_10_gib_passes():
    assert failures(total_bytes=int(9.5 * GIB)) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": (3, 10, 4)}, ["3.10.4", "3.11 or 3.12", "make PYTHON="]),
        ({"version": (3, 13, 0)}, ["3.13.0", "3.11 or 3.12"]),
        ({"has_ensurepip": False}, ["ensurepip", "python3.11-venv"]),
        ({"uname": {"system": "Darwin", "machine": "arm64"}}, ["Darwin on arm64", "Linux"]),
        ({"free_bytes": 2 * GIB}, ["2.0 GiB free in /clone", "8 GiB"]),
        ({"total_bytes": 4 * GIB}, ["4.0 GiB of memory", "10 GiB"]),
    ],
)
def test_each_failure_is_one_line_that_names_what_there_is_and_what_is_needed(change, words):
    (line,) = failures(**change)
    assert "\n" not in line
    assert all(word in line for word in words)


def test_all_failures_are_reported_at_once():
    assert len(failures(version=(3, 9, 0), free_bytes=0, total_bytes=0)) == 3


def test_the_lower_of_memory_and_container_limit_counts():
    meminfo = "MemTotal:       16777216 kB\nMemFree:  1 kB\n"
    assert preflight.memory_bytes(meminfo, ["max\n", ""]) == 16 * GIB
    assert preflight.memory_bytes(meminfo, [str(4 * GIB)]) == 4 * GIB


def test_failures_go_to_stderr_and_exit_with_2(monkeypatch, capsys):
    monkeypatch.setattr(preflight, "NEEDED_DISK_GIB", 10**9)
    assert preflight.main() == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("preflight: ") and captured.err.count("\n") == 1


def test_it_parses_as_python_3_6():
    tree = ast.parse(PATH.read_text(), feature_version=(3, 6))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert "__future__" not in imported
