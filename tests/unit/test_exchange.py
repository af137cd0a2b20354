"""Prediction rows in the formats of TVR and Moment-DETR: what is written scores as what it was written from."""

import json
from pathlib import Path

import pytest

from vsr1.episode.sample import SampleId
from vsr1.metrics.exchange import (
    read_moment_detr,
    read_moment_detr_truth,
    read_tvr,
    read_tvr_truth,
    score_exchange,
    write_submission,
    write_truth,
)
from vsr1.metrics.prediction_rows import failed_row
from vsr1.metrics.predictions import PredictionError, PredictionRow
from vsr1.metrics.ranked import TrueMoment, moment_detr_scores, tvr_scores
from vsr1.search.record import SearchTask


def row(number: int, moments: list[tuple[str, float, float, float]]) -> PredictionRow:
    blank = failed_row(
        SearchTask(SampleId(f"{number}_fig"), f"{number}_fig", "a ring", "b", (10, 20), 30.0), number, "", ""
    )
    return blank.model_copy(update={"ranked_moments": moments})


@pytest.fixture
def rows() -> list[PredictionRow]:
    found = [("a", 0.0, 30.0, 1.0), ("b", 10.0, 16.0, 0.5)]
    return [row(7, found), row(8, [("b", 12.0, 20.0, 1.0)]), row(9, [])]


def test_tvr_files(rows: list[PredictionRow], tmp_path: Path) -> None:
    predictions, truth = tmp_path / "p.json", tmp_path / "t.jsonl"
    write_submission(rows, "tvr", predictions)
    write_truth(rows, "tvr", truth)
    written = json.loads(predictions.read_text())
    assert written["video2idx"] == {"a": 0, "b": 1}
    assert written["VCMR"][0] == {"desc_id": 7, "desc": "a ring", "predictions": [[0, 0, 30, 1], [1, 10, 16, 0.5]]}
    assert written["VCMR"][2]["predictions"] == [[-1, 0, 0, 0]]  # their script cannot read an empty list
    assert json.loads(truth.read_text().splitlines()[0]) == {
        "vid_name": "b", "duration": 30.0, "ts": [10, 20], "desc": "a ring", "type": "v", "desc_id": 7,
    }  # fmt: skip
    scores = tvr_scores(read_tvr(predictions), read_tvr_truth(truth))
    assert scores["VR"] == {"r1": 33.33, "r5": 66.67, "r10": 66.67, "r100": 66.67}
    assert [scores["VCMR"][name] for name in ("0.5-r1", "0.5-r5", "0.7-r1", "0.7-r5")] == [33.33, 66.67, 33.33, 33.33]
    assert [scores["SVMR"][name] for name in ("0.5-r1", "0.7-r1")] == [66.67, 33.33]


def test_moment_detr_files(rows: list[PredictionRow], tmp_path: Path) -> None:
    predictions, truth = tmp_path / "p.jsonl", tmp_path / "t.jsonl"
    write_submission(rows, "moment-detr", predictions)
    write_truth(rows, "moment-detr", truth)
    assert json.loads(predictions.read_text().splitlines()[0]) == {
        "qid": "7_fig", "query": "a ring", "vid": "b", "pred_relevant_windows": [[10, 16, 0.5]],
    }  # fmt: skip
    found = read_moment_detr(predictions)
    assert found == {"7_fig": [(10, 16, 0.5)], "8_fig": [(12, 20, 1)], "9_fig": [(0, 0, 0)]}
    scores = moment_detr_scores(found, read_moment_detr_truth(truth))
    assert scores["MR-mIoU"] == pytest.approx(100 * (0.6 + 0.8) / 3, abs=0.005)
    assert (scores["MR-R1"]["0.5"], scores["MR-R1"]["0.8"], scores["MR-R1"]["0.85"]) == (66.67, 33.33, 0)


def test_several_annotators_are_read(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"desc_id": "x", "vid_name": "v", "ts": [[0, 5], [0, 5], [5, 10.5], [0, 10]]}))
    assert read_tvr_truth(path) == {"x": TrueMoment("v", ((0, 5), (0, 5), (5, 10.5), (0, 10)))}


def test_faults_are_named(rows: list[PredictionRow], tmp_path: Path) -> None:
    path = tmp_path / "p"
    with pytest.raises(PredictionError, match="does not exist"):
        read_tvr(path)
    for text, message in (
        ('{"VCMR": []}', "video2idx: Field required; is it the format"),
        ('{"video2idx": {}, "VR": [{"desc_id": 1, "predictions": [[0, 1]]}]}', "query 1: a prediction lacks its start"),
        ('{"video2idx": {}, "VR": [{"desc_id": 1, "predictions": [[]]}]}', "query 1: a prediction lacks its video"),
        ('{"video2idx": {}, "VR": [{"desc_id": 1, "predictions": []}, {"desc_id": 1, "predictions": []}]}', "twice"),
        ('{"video2idx": {}, "VR": [{"desc_id": 1, "predictions": [[0, NaN, 1]]}]}', "finite number"),
    ):
        path.write_text(text)
        with pytest.raises(PredictionError, match=message):
            read_tvr(path)
    path.write_text('{"qid": 1, "pred_relevant_windows": [[0, 1, 1]]}\n{"qid": 2}\n')
    with pytest.raises(PredictionError, match=r"line 2: pred_relevant_windows: Field required"):
        read_moment_detr(path)
    with pytest.raises(PredictionError, match="qid seven: TVR's format needs a number"):
        write_submission([rows[0].model_copy(update={"qid": "seven"})], "tvr", path)
    with pytest.raises(PredictionError, match="qid 7_fig has no ground truth"):
        write_truth([rows[0].model_copy(update={"gt_start": None})], "tvr", path)
    with pytest.raises(PredictionError, match="has no ranked_moments"):
        write_submission([rows[0].model_copy(update={"ranked_moments": None, "status": "ok"})], "tvr", path)


def test_ids_as_numbers_and_as_text_are_the_same(tmp_path: Path) -> None:
    (tmp_path / "p").write_text('{"qid": "7803", "pred_relevant_windows": [[0, 1, 0.5]]}\n')
    (tmp_path / "t").write_text('{"qid": 7803, "relevant_windows": [[0, 1]]}\n')
    assert score_exchange(tmp_path / "p", tmp_path / "t", "moment-detr")["MR-mIoU"] == 100.0
    ranking = [{"desc_id": "7", "predictions": [[0, 0, 1, 0.5]]}]
    (tmp_path / "p").write_text(json.dumps({"video2idx": {"a": 0}, "VCMR": ranking}))
    (tmp_path / "t").write_text('{"desc_id": 7, "vid_name": "a", "ts": [0, 1]}\n')
    assert score_exchange(tmp_path / "p", tmp_path / "t", "tvr")["VCMR"]["0.7-r1"] == 100.0
    (tmp_path / "p").write_text(
        '{"qid": "7803", "pred_relevant_windows": []}\n{"qid": 7803, "pred_relevant_windows": []}\n'
    )
    (tmp_path / "t").write_text('{"qid": 7803, "relevant_windows": [[0, 1]]}\n')
    with pytest.raises(PredictionError, match="query 7803 is there twice"):
        score_exchange(tmp_path / "p", tmp_path / "t", "moment-detr")
