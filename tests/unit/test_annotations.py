"""Annotation files: what is read, and that every fault is named by line and field."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsr1.formats.annotations import Annotation, AnnotationError, read_annotations

ROW: dict[str, Any] = {
    "video": "TAQ25",
    "time": [11.6, 17.7],
    "desc_id": 65,
    "duration": 28.0,
    "cog_desc": "the person closes the laptop screen.",
    "fig_desc": "The person closes the laptop screen in a room with a closet full of clothes.",
    "fig_desc_score": 0.391357421875,
}


def write(folder: Path, *rows: Any) -> Path:
    path = folder / "test.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in ROW.items() if name != key}


def test_rows_are_read_in_file_order(tmp_path: Path) -> None:
    rows = read_annotations(write(tmp_path, ROW, "", {**ROW, "desc_id": 7, "time": [0, 5]}))
    assert [row.qid for row in rows] == ["65_fig", "7_fig"]
    assert rows[0].time == (11.6, 17.7)
    assert rows[1].time == (0.0, 5.0)


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ('{"video": "a"', "whole line: Invalid JSON"),
        ("[]", "whole line"),
        (without("fig_desc"), "fig_desc: Field required"),
        ({**ROW, "duration": "28"}, "duration: "),
        ({**ROW, "desc_id": 1.5}, "desc_id: "),
        ({**ROW, "desc_id": True}, "desc_id: "),
        ({**ROW, "time": [1.0]}, "time.1: Field required"),
        ({**ROW, "duration": float("nan")}, "duration: "),
        ({**ROW, "time": [5.0, 5.0]}, "time: end 5.0 s is not after start 5.0 s"),
        ({**ROW, "time": [-0.5, 5.0]}, "time: start -0.5 s is below 0"),
        ({**ROW, "time": [1.0, 28.5]}, "time: end 28.5 s is beyond the duration of 28.0 s"),
        ({**ROW, "time": [28.1, 28.5]}, "time: start 28.1 s is beyond the duration of 28.0 s"),
        ({**ROW, "fig_desc": "  "}, "fig_desc: the query text is empty"),
        ({**ROW, "video": "../a"}, "video: '../a' is not a file stem"),
        ({**ROW, "desc_id": 1}, "desc_id: 1 is already that of line 1"),
    ],
)
def test_a_fault_names_file_line_and_field(tmp_path: Path, row: Any, field: str) -> None:
    path = write(tmp_path, {**ROW, "desc_id": 1}, row)
    with pytest.raises(AnnotationError) as caught:
        read_annotations(path)
    assert str(path) in str(caught.value)
    assert f"line 2: {field}" in str(caught.value)


def test_all_faults_are_listed_up_to_twenty(tmp_path: Path) -> None:
    bad = [{**ROW, "desc_id": number, "fig_desc": "", "time": [3, 2]} for number in range(13)]
    with pytest.raises(AnnotationError) as caught:
        read_annotations(write(tmp_path, *bad))
    lines = str(caught.value).splitlines()
    assert "26 faults" in lines[0]
    assert len(lines) == 1 + 20 + 1
    assert lines[-1].strip() == "and 6 more"


def test_times_beyond_the_video_are_kept_on_request(tmp_path: Path) -> None:
    path = write(tmp_path, {**ROW, "time": [20.0, 30.5]})
    assert read_annotations(path, beyond_duration="keep")[0].time == (20.0, 30.5)


def test_four_keys_are_enough(tmp_path: Path) -> None:
    few = {name: ROW[name] for name in ("video", "time", "duration", "fig_desc")}
    rows = read_annotations(write(tmp_path, few, "", {**few, "fig_desc": "b", "cog_desc": "c", "fig_desc_score": 0.5}))
    assert [(row.desc_id, row.cog_desc, row.fig_desc_score) for row in rows] == [
        (0, ROW["fig_desc"], 1.0),
        (1, "c", 0.5),
    ]


def test_a_desc_id_in_some_lines_only_is_a_fault_of_the_others(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError) as caught:
        read_annotations(write(tmp_path, without("desc_id"), ROW, without("desc_id"), {**ROW, "fig_desc": ""}))
    text = str(caught.value)
    assert "line 1: desc_id: missing, but line 2 has one" in text
    assert "line 3: desc_id: missing, but line 2 has one" in text
    assert "line 4: fig_desc: the query text is empty" in text
    assert "4 faults" in text


def test_a_missing_and_an_empty_file_are_errors(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match="does not exist"):
        read_annotations(tmp_path / "none.jsonl")
    with pytest.raises(AnnotationError, match="is empty"):
        read_annotations(write(tmp_path, ""))


def test_bytes_that_are_not_utf8_are_a_fault_of_their_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps(ROW).encode() + b"\n" + json.dumps(ROW).encode().replace(b"TAQ25", b"\xff\xfe") + b"\n")
    with pytest.raises(AnnotationError, match="line 2"):
        read_annotations(path)


@given(st.text(min_size=1).filter(lambda text: bool(text.strip())))
def test_any_query_text_survives(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    row = Annotation(**{**ROW, "time": (1.0, 2.0), "fig_desc": text})
    path = tmp_path_factory.mktemp("annotations") / "a.jsonl"
    path.write_text(row.model_dump_json() + "\n", encoding="utf-8")
    assert read_annotations(path) == [row]
