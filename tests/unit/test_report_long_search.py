"""What the report page has of searches that navigate: films, calls, judgements, figures by budget."""

import pytest
from long_search_runs import write_long_search_run

from pipelines.evaluation.report import read_run, write_run_report
from vsr1.config import Config
from vsr1.report.budgets import found_moments


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Config:
    return write_long_search_run(tmp_path_factory.mktemp("long"))


@pytest.fixture(scope="module")
def run(config):
    return read_run(config.run_dir, "run")


def rows_of(run, source):
    return [row for row in run.rows if row["source"] == source]


def test_every_episode_has_a_row(run):
    assert list(run.evaluations) == ["before", "after"] and run.unfinished == []
    assert [row["query_id"] for row in rows_of(run, "after")] == ["1_fig@2", "2_fig@2", "1_fig@6", "2_fig@6"]
    assert {row["kind"] for row in run.rows} == {"search_then_navigate"} and len(rows_of(run, "training")) == 3
    assert {row["outcome"] for row in rows_of(run, "before")} == {"not found"}


def test_turns_are_calls_and_judgements_in_their_order(run):
    kinds = [["call" if "tool" in turn else turn["video"] for turn in row["turns"]] for row in rows_of(run, "after")]
    assert any("test-short" in turns for turns in kinds)
    row = rows_of(run, "after")[2]
    last = row["films"][-1]
    calls, judged = row["turns"][last["first"] : last["last"]], row["turns"][last["last"]]
    assert [turn["tool"] for turn in calls] == ["caption", "look", "find"]
    assert (judged["video"], judged["right"], judged["verdict"], judged["clip"]) == (
        row["gt_video"],
        True,
        "matched",
        None,
    )
    assert row["outcome"] == "right video" and row["iou"] > 0.5 and judged["rank_before"] >= 1
    assert calls[0]["said"] == last["captions"][",".join(map(str, calls[0]["node"]))]
    assert len(calls[1]["clip"]) == 64 and [turn["left"] for turn in calls] == sorted(
        [turn["left"] for turn in calls], reverse=True
    )


def test_each_film_has_its_tree_and_what_was_left_for_it(run):
    for row in rows_of(run, "after"):
        left = row["budget"]
        for film in row["films"]:
            judged = row["turns"][film["last"]]
            assert film["film"] == judged["video"] and film["budget"] == left
            assert film["clues"] == ([row["gt_span"]] if judged["right"] else [])
            assert film["seconds"] > 500
            assert len([node for node, _, _ in film["cells"] if len(node) == 1]) == 4
            left -= sum(turn["cost"] for turn in row["turns"][film["first"] : film["last"]])
        short = [turn for turn in row["turns"] if turn["video"] == "test-short"]
        assert all(turn["clip"] and turn["rewrite"] for turn in short)


def test_mistakes_are_named_and_calls_have_no_latents(run):
    careless = rows_of(run, "training")[2]
    statuses = [turn["status"] for turn in careless["turns"] if "tool" in turn]
    assert "repeat" in statuses and "bad_node" in statuses
    assert all("latents" not in turn["advantages"] for turn in careless["turns"] if "tool" in turn)


def test_figures_by_budget_are_of_moments(run):
    shown = found_moments("after", run.evaluations["after"], rows_of(run, "after"))
    assert [budget for budget, _, _ in shown.budgets] == ["2", "6"]
    _, large, ends = shown.budgets[1]
    assert (large.questions, large.accuracy, large.abstained, ends) == (2, 1.0, 0.0, (1.0, 1.0))
    assert large.calls > 2 and 0 < large.location <= 1 and large.reward > 0
    none = found_moments("before", run.evaluations["before"], rows_of(run, "before"))
    assert [(one.accuracy, one.abstained) for _, one, _ in none.budgets] == [(0.0, 1.0)] * 2
    assert shown.statuses["ok"] > 4 and shown.statuses["matched"] >= 2
    short = found_moments("after", run.evaluations["after"], rows_of(run, "after")[:3])
    assert short.budgets[1][2][0] < 1  # one that was not played counts as not found


def test_the_page_has_columns_by_budget_and_frames(config, tmp_path):
    page = write_run_report([config.run_dir], tmp_path / "page.html").read_text()
    assert "Accuracy by budget" in page and "moments with an IoU of at least 0.5" in page
    places = [page.index(f'<th scope="colgroup" colspan="3">{name}</th>')
              for name in ("before, budget 2", "after, budget 2", "before, budget 6", "after, budget 6")]  # fmt: skip
    assert places == sorted(places)
    assert '<template id="film-0"' in page and "not recorded" not in page


def test_without_the_dataset_the_right_film_has_a_tree(config):
    run = read_run(config.run_dir, "run", with_frames=False)
    assert run.frames is None
    films = [film for row in rows_of(run, "after") for film in row["films"]]
    assert films and all(film["clues"] and not film["captions"] for film in films)
