"""Files and folders appear whole or not at all."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vsr1.formats.atomic import part_folder, read_lines, replacing, replacing_folder, write_json, write_lines


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "folder" / "file.txt"
    with replacing(target) as part:
        part.write_text("old")
        assert part.suffix == ".txt"
        assert not target.exists()
    with pytest.raises(RuntimeError, match="midway"), replacing(target) as part:
        part.write_text("ne")
        raise RuntimeError("midway")
    assert target.read_text() == "old"
    assert [path.name for path in target.parent.iterdir()] == ["file.txt"]


def test_json_keeps_its_letters(tmp_path: Path) -> None:
    rows = [{"query": "a caf\u00e9"}, {"query": "two\nlines, or\u2028three"}]
    write_lines(tmp_path / "rows.jsonl", rows)
    assert read_lines(tmp_path / "rows.jsonl") == rows
    assert "caf\u00e9" in (tmp_path / "rows.jsonl").read_text(encoding="utf-8").split("\n")[0]
    write_json(tmp_path / "value.json", rows)
    assert json.loads((tmp_path / "value.json").read_text(encoding="utf-8")) == rows


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _write_checkpoint(target: Path, text: str) -> None:
    with replacing_folder(target) as part:
        assert part == part_folder(target) and not list(part.iterdir())
        (part / "deep").mkdir()
        (part / "deep" / "weights").write_text(text)


def test_a_folder_stays_as_it_is_when_its_writer_fails(tmp_path: Path) -> None:
    target = tmp_path / "runs" / "checkpoint"
    with pytest.raises(RuntimeError, match="midway"), replacing_folder(target) as part:
        (part / "weights").write_text("ha")
        raise RuntimeError("midway")
    assert _names(target.parent) == []
    _write_checkpoint(target, "first")
    with pytest.raises(RuntimeError, match="midway"), replacing_folder(target) as part:
        (part / "weights").write_text("ha")
        raise RuntimeError("midway")
    assert (target / "deep" / "weights").read_text() == "first"
    _write_checkpoint(target, "second")
    assert (target / "deep" / "weights").read_text() == "second"
    assert _names(target.parent) == ["checkpoint"]


KILLED = """
import os, signal, sys
from pathlib import Path
from vsr1.formats.atomic import replacing_folder

def killed_at(number):
    rename = os.rename
    calls = iter(range(number))
    def counted(*paths):
        if next(calls, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(*paths)
    os.rename = counted

target, renames = Path(sys.argv[1]), int(sys.argv[2])
if renames >= 0:
    killed_at(renames)
with replacing_folder(target) as part:
    (part / "weights").write_text("new")
    if renames < 0:
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(
    ("renames", "is_there"),
    [(-1, True), (0, True), (1, False)],
    ids=["while it writes", "before it renames", "between the two renames"],
)
def test_what_a_killed_writer_left_is_cleared_and_nothing_whole_is_lost(
    tmp_path: Path, renames: int, is_there: bool
) -> None:
    target = tmp_path / "checkpoint"
    _write_checkpoint(target, "old")
    ended = subprocess.run([sys.executable, "-c", KILLED, str(target), str(renames)], timeout=60)
    assert ended.returncode == -signal.SIGKILL
    assert len(_names(tmp_path)) == 2
    assert target.exists() == is_there, "never half a folder under the name"
    with pytest.raises(RuntimeError, match="the next one fails"), replacing_folder(target):
        assert (target / "deep" / "weights").read_text() == "old"
        raise RuntimeError("the next one fails")
    assert (target / "deep" / "weights").read_text() == "old"
    assert _names(tmp_path) == ["checkpoint"]
