"""The benchmark's tables: one row an arm and evaluation, mean and spread over its seeds."""

import json
from pathlib import Path

import pytest
from search_episodes import search_trajectory, search_turn

from bench.toy.results import result_lines, results
from vsr1.metrics.prediction_rows import prediction_row
from vsr1.metrics.predictions import PredictionError
from vsr1.metrics.summary import summarise
from vsr1.runs.scalars import RunLog
from vsr1.search.record import SearchTrajectory


def _trajectory(query_id: str, rank: int) -> SearchTrajectory:
    turn = search_turn(1, "v", "matched", (1.0, 2.0), ranks=(rank, None))
    return search_trajectory(query_id, [turn], gt=("v", (1.0, 2.0), 9.0))


def _evaluation(folder: Path, label: str, ranks: list[int]) -> None:
    rows = [prediction_row(_trajectory(str(i), rank), i, max_turn=1, corpus_size=9) for i, rank in enumerate(ranks)]
    folder.mkdir(exist_ok=True)
    (folder / f"{label}.json").write_text(json.dumps(summarise(rows).to_json()))


def test_arms_are_rows_with_mean_and_spread_over_seeds(tmp_path: Path) -> None:
    _evaluation(tmp_path / "full-0", "after", [1, 1, 1, 2])
    _evaluation(tmp_path / "full-1", "after", [1, 2, 2, 2])
    _evaluation(tmp_path / "sft-0", "eval-next_video", [1, 1, 2, 2])
    for published in ("full-0/after", "sft-0/eval-next_video"):
        (tmp_path / f"{published}.published.json").write_text("{}")
    header, _, full, sft, *_ = results(tmp_path).splitlines()
    assert header.startswith("| | seeds | R@1, engine |")
    assert full.startswith("| full | 2 | 50.0 ± 35.4 | 50.0 ± 35.4 |")
    assert sft.startswith("| sft next_video | 1 | 50.0 |")


def test_an_evaluated_run_is_a_line_of_json_with_what_its_training_took(tmp_path: Path) -> None:
    run = tmp_path / "infonce+black-3"
    _evaluation(run, "after", [1, 1, 1, 2])
    _evaluation(run, "after-three_turns", [2, 2, 1, 2])
    with RunLog(run) as log:
        for step in (1, 2):
            log.log("grpo", step, {"seconds/rollout": 2.0, "seconds/learn": 0.5, "seconds/learn/forward": 0.2})
        log.log("val", 2, {"reward": 1.0})
    three, plain = sorted(result_lines(run), key=lambda line: -len(line["agent"]))
    assert (plain["arm"], plain["seed"], plain["steps"], plain["seconds"]) == ("infonce+black", 3, 2, 5.0)
    assert (plain["R@1, engine"], three["R@1, engine"], three["agent"]) == (0.75, 0.25, "three_turns")
    assert (plain["right rejected"], plain["wrong accepted"]) == (0.0, None), "only right videos were looked at"
    json.dumps([three, plain])


def test_a_folder_without_evaluations_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PredictionError, match="ARM-SEED"):
        results(tmp_path)
