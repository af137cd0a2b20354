"""What the report page has of a run of navigation: tree, calls, what tools said, looks, accuracy by budget."""

import json
import shutil

import pytest
from navigate_runs import write_navigation_run

from pipelines.evaluation.report import ReportError, read_run, write_run_report
from vsr1.config import Config
from vsr1.report.budgets import accuracies, accuracy_chart


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Config:
    return write_navigation_run(tmp_path_factory.mktemp("navigate"))


@pytest.fixture(scope="module")
def run(config):
    return read_run(config.run_dir, "run")


def row_of(run, source, query):
    [row] = [row for row in run.rows if (row["source"], row["query_id"]) == (source, query)]
    return row


def test_every_episode_has_a_row(run):
    assert list(run.evaluations) == ["before", "after"] and run.unfinished == []
    assert [row["source"] for row in run.rows] == ["before"] * 9 + ["after"] * 9 + ["training"] * 6
    assert {row["kind"] for row in run.rows} == {"navigate"}
    assert row_of(run, "before", "test-0000@6")["outcome"] == "abstained"


def test_the_path_has_what_tools_said_and_what_it_cost(run):
    row = row_of(run, "after", "test-0000@6")
    assert row["outcome"] == "right answer" and row["answered"] == row["answer"]
    assert [turn["tool"] for turn in row["turns"]] == ["find", "caption", "caption", "look", "video_qa", None]
    assert [turn["left"] for turn in row["turns"]] == [5, 4, 3, 2, 1, 1]
    find, above, leaf, look, asked, answer = row["turns"]
    assert len(find["nodes"]) == 3 and find["said"] is None
    assert above["said"] == row["captions"][",".join(map(str, above["node"]))]
    assert row["answer"] in leaf["said"] and asked["said"] and answer["said"] is None
    assert look["video"].startswith("test-0000@") and len(look["clip"]) == 64


def test_the_tree_has_the_parts_of_what_was_opened(run):
    row = row_of(run, "after", "test-0000@2")
    parts = [tuple(node) for node, _, _ in row["cells"]]
    assert parts[:4] == [(1,), (2,), (3,), (4,)] and len(parts) == len(set(parts))
    named = {tuple(node) for turn in row["turns"] for node in turn["nodes"]}
    assert named <= set(parts) and all(len(node) == 2 for node in parts[4:])
    assert [row["captions"][str(number)] for number in range(1, 5)]
    starts = {tuple(node): start for node, start, _ in row["cells"]}
    assert starts[2,] == pytest.approx(row["seconds"] / 4, abs=0.1)


def test_mistakes_are_named(run):
    careless = next(row for row in run.rows if row["source"] == "training" and row["sample"] == 2)
    assert [turn["status"] for turn in careless["turns"]] == ["ok", "repeat", "bad_node", "closed_node", "abstained"]
    assert careless["turns"][1]["said"] == careless["turns"][0]["said"]
    assert careless["turns"][1]["cost"] == 0 and careless["turns"][0]["advantages"]


def test_frames_of_a_look_are_in_seconds_of_the_part(run):
    look = row_of(run, "after", "test-0000@6")["turns"][3]
    clip = run.frames(look["video"], look["clip"])
    assert len(clip.frames) == 4 and 0 < clip.timestamps[0] < clip.timestamps[-1] < clip.seconds < 15
    with pytest.raises(ReportError, match="is not the one that was shown"):
        run.frames(look["video"], "0" * 64)


def test_accuracy_by_budget_counts_what_was_not_played(run):
    summary = run.evaluations["after"]
    rows = [row for row in run.rows if row["source"] == "after"]
    shown = accuracies("after", summary, rows)
    assert [(budget, one.accuracy, ends) for budget, one, ends in shown.budgets] == [
        (budget, 1.0, (1.0, 1.0)) for budget in ("2", "6", "16")
    ]
    short = accuracies("after", summary, [row for row in rows if row["query_id"] != "test-0000@6"])
    assert short.budgets[1][2][0] < 1 and short.budgets[0][2] == (1.0, 1.0)
    chart, budgets = accuracy_chart([shown, accuracies("before", run.evaluations["before"], rows)])
    assert budgets == ["2", "6", "16"] and [line.points[0] for line in chart.lines] == [(0, 1.0), (0, 0.0)]


def test_the_page_is_written(config, tmp_path):
    page = write_run_report([config.run_dir], tmp_path / "page.html").read_text()
    assert "Accuracy by budget" in page and '<template id="film-0"' in page
    assert "Video retrieval, engine alone" not in page and "No evaluation was found" not in page


def test_without_the_dataset_there_is_the_path_alone(config, tmp_path):
    run = read_run(config.run_dir, "run", with_frames=False)
    assert run.frames is None and run.rows[0]["captions"] == {} and run.rows[0]["turns"][0]["tool"] == "find"
    shutil.copytree(config.data.root, tmp_path / "moved")
    (tmp_path / "moved" / "navigate" / "test.questions.jsonl").unlink()
    with pytest.raises(ValueError, match="holds no film 'test-0000'"):
        read_run(config.run_dir, "run", data=tmp_path / "moved")


def test_a_run_that_cannot_be_read_says_why(config, tmp_path):
    shutil.copytree(config.run_dir, tmp_path / "run")
    text = (config.run_dir / "config.yaml").read_text()
    (tmp_path / "run" / "config.yaml").write_text(text.replace("environment: navigate", "environment: chess"))
    with pytest.raises(
        ReportError, match="environment=chess; the page shows search, navigate, search_then_navigate only"
    ):
        read_run(tmp_path / "run", "run")
    (tmp_path / "run" / "config.yaml").write_text(text.replace("parent_first: true", "parent_first: perhaps"))
    with pytest.raises(ReportError, match="say --no-frames"):
        read_run(tmp_path / "run", "run")
    summary = json.loads((tmp_path / "run" / "after.json").read_text())
    (tmp_path / "run" / "after.json").write_text(json.dumps(summary | {"settings": {"name": "another"}}))
    assert read_run(tmp_path / "run", "run", with_frames=False).unfinished == ["after"]
