"""Annotation files as other corpora publish them become rows that a build reads."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from vsr1.formats.annotations import read_annotations

from .bad_files import film

CAPTIONS = {"v_a": {"duration": 30.0, "timestamps": [[0, 4.5], [3, 9]], "sentences": ["He runs. ", " He sits."]}}
HIGHLIGHTS = {"qid": 7, "vid": "a_1.0_2.0", "query": "A cat.", "duration": 150, "relevant_windows": [[0, 4], [8, 12]]}
PARTS = {"video": "a.mp4", "description": "a dog", "times": [[0, 0], [1, 1], [1, 1]]}


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        (
            "a 1.0 2.5##he sits.\r\na 0.0 6.9##he,\u2028# runs\r\n",
            [("a", "he sits.", (1, 2.5), 6), ("a", "he,\u2028# runs", (0, 6.9), 6)],
        ),
        (json.dumps([PARTS]), [("a.mp4", "a dog", (5, 6), 6)]),
        (json.dumps(CAPTIONS), [("v_a", "He runs.", (0, 4.5), 30), ("v_a", "He sits.", (3, 9), 30)]),
        (
            json.dumps(HIGHLIGHTS) + "\n",
            [("a_1.0_2.0", "A cat.", (0, 4), 150), ("a_1.0_2.0", "A cat.", (8, 12), 150)],
        ),
    ],
)
def test_a_file_of_another_corpus_becomes_rows(tmp_path: Path, text: str, rows: list[Any]) -> None:
    (tmp_path / "videos").mkdir()
    film(tmp_path / "videos" / "a.mp4")
    (tmp_path / "source").write_text(text, encoding="utf-8-sig")
    outcome = run(tmp_path)
    assert outcome.exit_code == 0 and f"{len(rows)} rows in" in outcome.output
    read = read_annotations(tmp_path / "out.jsonl", "keep")  # Charades-STA has ends beyond its films
    assert [(row.video, row.fig_desc, row.time, row.duration) for row in read] == rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a 1.0 2.5##he sits.\nno times##he runs\n", "row 2 is none of Charades-STA"),
        (json.dumps({"v_a": {"duration": 3, "timestamps": [[0, 1]], "sentences": []}}), "row 1 is none of"),
        ("hello\n", "row 1 is none of Charades-STA"),
        (json.dumps([{"video": "a", "times": []}]), "row 1 is none of Charades-STA"),
        ("a 1.0 2.5##caf\u00e9\n", "not UTF-8 at byte 14; save the file as UTF-8 text"),
        ("elsewhere 1.0 2.5##he sits.\n", "elsewhere: no video file in"),
    ],
)
def test_a_file_of_another_form_is_one_line_with_its_row(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "videos").mkdir()
    film(tmp_path / "videos" / "a.mp4")
    (tmp_path / "source").write_text(text, encoding="latin-1")
    outcome = run(tmp_path)
    assert outcome.exit_code == 1 and "Traceback" not in outcome.stderr
    [line] = outcome.stderr.splitlines()
    assert message in line and not (tmp_path / "out.jsonl").exists()


def run(folder: Path) -> Any:
    command = ["data", "convert", str(folder / "source"), str(folder / "out.jsonl"), "--videos", str(folder / "videos")]
    return CliRunner().invoke(app, command)
