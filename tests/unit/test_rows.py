"""Files of rows as people have them are read, or refused in one line that says what they are."""

import gzip
import json
from pathlib import Path

import pytest

from vsr1.formats.annotations import Annotation, AnnotationError, FaultyRow, read_annotations
from vsr1.metrics.exchange import read_moment_detr, read_tvr
from vsr1.metrics.predictions import PredictionError

ROWS = [
    {"video": "a", "fig_desc": "Eine Tür, „blau“; 2 Mal", "time": [1.0, 2.5], "duration": 10.0},
    {"video": "b", "fig_desc": "日本", "time": [3, 4], "duration": 20},
]
LINES = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n"
CSV = 'video,start,end,duration,fig_desc\r\na,1.0,2.5,10.0,"Eine Tür, „blau“; 2 Mal"\r\nb,3,4,20,日本\r\n'
FILES = {
    "JSON lines": LINES.encode(),
    "byte order mark": b"\xef\xbb\xbf" + LINES.encode(),
    "marks of joined files": b"\xef\xbb\xbf" + LINES.replace("\n", "\n\ufeff", 1).encode(),
    "UTF-16 with a mark": LINES.encode("utf-16"),
    "UTF-16 big endian": b"\xfe\xff" + LINES.encode("utf-16-be"),
    "UTF-16 without a mark": LINES.encode("utf-16-le"),
    "UTF-32": LINES.encode("utf-32"),
    "Windows lines": LINES.replace("\n", "\r\n").encode(),
    "a list": json.dumps(ROWS, indent=2).encode(),
    "a list in UTF-16": json.dumps(ROWS).encode("utf-16"),
    "CSV": CSV.encode(),
    "CSV of a spreadsheet": b"\xef\xbb\xbf" + CSV.replace(",", ";").replace("Tür; ", "Tür, ").encode(),
    "lines that end in CR": LINES.replace("\n", "\r").encode(),
    "CSV with empty rows and columns": CSV.replace("\r\n", ",,\r\n").replace("\r\nb", "\r\n,,,,,,\r\nb").encode(),
    "tabs": (
        'video\tstart\tend\tduration\tfig_desc\na\t1.0\t2.5\t10.0\t"Eine Tür, „blau“; 2 Mal"\nb\t3\t4\t20\t日本'
    ).encode(),
}


@pytest.mark.parametrize("kind", FILES)
def test_every_form_gives_the_same_rows(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "rows"
    path.write_bytes(FILES[kind])
    rows = read_annotations(path)
    assert [(row.video, row.fig_desc, row.time, row.duration, row.desc_id) for row in rows] == [
        ("a", ROWS[0]["fig_desc"], (1.0, 2.5), 10.0, 0), ("b", "日本", (3.0, 4.0), 20.0, 1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"AO8RW 0.0 6.9##a person opens a door\nXYZ 1 2##b", "neither JSON lines nor a JSON list nor CSV"),
        (b"a,1.0,2.5,10.0,text\n", "neither JSON lines nor a JSON list nor CSV"),
        (json.dumps({"a": {"duration": 3}}, indent=1).encode(), "is one JSON object over several lines"),
        (json.dumps(ROWS).encode()[:-9], "begins as a JSON list and is none"),
        (b"PK\x03\x04\x14\x00\x06\x00" * 9, "is a ZIP archive or a spreadsheet"),
        (gzip.compress(LINES.encode()), "is compressed by gzip; unpack it"),
        (b"PAR1" + b"{\n{" * 9, "is a Parquet file"),
        (b"\xff\xfe" + LINES.encode("utf-16-le")[:-1], "line 2 is no UTF-16-LE"),
        (CSV.encode("cp1252", "replace"), "line 2 is no UTF-8 .* save the file as UTF-8"),
        (json.dumps(ROWS, ensure_ascii=False).encode("cp1252", "replace"), "line 1 is no UTF-8"),
        (CSV.replace('"', "").encode(), "line 2 has 6 fields, the header 5"),
        (CSV.replace("日本", '"日本').encode(), "line 3 is no CSV: unexpected end of data; is a quote open before it"),
        (b"[" * 9000, "begins as a JSON list and is none"),
        (b"\n\n", "is empty"),
    ],
)
def test_a_file_of_another_kind_is_refused_in_one_line(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "rows"
    path.write_bytes(content)
    with pytest.raises(AnnotationError, match=says) as refused:
        read_annotations(path)
    assert "\n" not in str(refused.value) and str(path) in str(refused.value)


def test_faults_are_named_by_their_place_in_every_form(tmp_path: Path) -> None:
    (tmp_path / "list").write_text(json.dumps([ROWS[0], {"video": "b"}]))
    with pytest.raises(AnnotationError, match=r"entry 2: time: Field required"):
        read_annotations(tmp_path / "list")
    (tmp_path / "csv").write_text(CSV.replace("b,3,4", "b,4,3"))
    with pytest.raises(AnnotationError, match=r"line 3: time: end 3\.0 s is not after start 4\.0 s"):
        read_annotations(tmp_path / "csv")


def test_a_line_that_is_no_utf_8_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows").write_bytes(LINES.encode("cp1252", "replace"))
    with pytest.raises(AnnotationError, match=r"line 1: whole line: .* save the file as UTF-8"):
        read_annotations(tmp_path / "rows")


def test_signs_that_end_a_line_elsewhere_end_none_in_csv(tmp_path: Path) -> None:
    text = "a man\u2028who runs\u0085fast\x0bnow"
    (tmp_path / "rows").write_text(
        f'video,start,end,duration,fig_desc\na,1,2,10,{text}\nb,1,2,10,"two\nlines"\n', "utf-8"
    )
    assert [row.fig_desc for row in read_annotations(tmp_path / "rows")] == [text, "two\nlines"]


def test_two_durations_of_one_video_are_told(tmp_path: Path) -> None:
    rows = [ROWS[0], ROWS[0] | {"duration": 20.0, "time": [15, 18]}, ROWS[0] | {"duration": 10.4}]
    path = tmp_path / "rows"
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(AnnotationError, match=r"line 2: duration: 20\.0 s, but 10\.0 s of the same video in line 1"):
        read_annotations(path)
    assert len(read_annotations(path, beyond_duration="keep")) == 3
    dropped: list[FaultyRow] = []
    kept: list[Annotation] = read_annotations(path, dropped=dropped)
    assert [row.duration for row in kept] == [10.0, 10.4]
    assert [(row.place, json.loads(row.text)["duration"]) for row in dropped] == [("line 2", 20.0)]


def test_files_of_other_evaluators_come_in_every_form_too(tmp_path: Path) -> None:
    windows = [{"qid": 7, "pred_relevant_windows": [[0, 1, 0.5]]}, {"qid": "8", "pred_relevant_windows": []}]
    (tmp_path / "list.json").write_bytes(json.dumps(windows, indent=1).encode("utf-16"))
    assert read_moment_detr(tmp_path / "list.json") == {"7": [(0.0, 1.0, 0.5)], "8": []}
    (tmp_path / "tvr.json").write_bytes(b"\xef\xbb\xbf" + json.dumps({"video2idx": {}, "VR": []}).encode())
    assert read_tvr(tmp_path / "tvr.json") == {"VR": {}}
    (tmp_path / "text").write_text("7 0 1")
    with pytest.raises(PredictionError, match="neither JSON lines"):
        read_moment_detr(tmp_path / "text")


def test_texts_of_csv_that_look_like_numbers_stay_texts(tmp_path: Path) -> None:
    (tmp_path / "csv").write_text('video,time,duration,fig_desc,fig_desc_score,desc_id\n123,"[1, 2]",9,456,0.5,7\n')
    [row] = read_annotations(tmp_path / "csv")
    assert (row.video, row.time, row.fig_desc, row.fig_desc_score, row.desc_id) == ("123", (1, 2), "456", 0.5, 7)
