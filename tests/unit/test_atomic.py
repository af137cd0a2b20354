"""Files appear whole or not at all."""

import json
from pathlib import Path

import pytest

from vsr1.formats.atomic import read_lines, replacing, write_json, write_lines


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
