"""Which runs put trained policies on the curve of accuracy against budget, and what is read off it."""

import pytest

from bench.navigate_arms import arm_figures, arm_runs, mean_of
from bench.optimum import best_accuracy
from bench.toy.experiment import Run
from vsr1.formats.atomic import write_lines
from vsr1.formats.dataset import DatasetFolder
from vsr1.navigate.summary import NavigateRow
from vsr1.settings.navigate import NavigateConfig
from vsr1.toy.long_corpus import LongFilms, write_long_corpus

LENGTHS = (12, 48)  # the latter becomes 47, of 216 leaves of whole seconds
BUDGETS = (2.0, 8.0)


@pytest.fixture
def films(tmp_path):
    folder = DatasetFolder(tmp_path / "data")
    write_long_corpus(folder, {"test": 4}, NavigateConfig(toy_test_minutes=list(LENGTHS)), 0)
    return LongFilms.of_split(folder, "test", 2).films


def rows(films, rights=()):
    """Return a row of each question and budget, right where the budget is one of `rights`."""
    return [
        NavigateRow(
            qid=f"{film}@{budget:g}", question_id=film, budget=budget, right=budget in rights, calls=int(budget)
        )
        for film in films
        for budget in BUDGETS
    ]  # fmt: skip


def test_every_policy_starts_from_the_stage_1_of_its_seed():
    first, second = arm_runs([3], ["drawn", "fixed2", "fixed30"])
    start, after = "sft-3/checkpoints/sft", "grpo.evaluate_after=true"
    assert first == [Run("sft-3", "sft", "sft", 3)]
    assert second == [
        Run("drawn-3", "grpo", "drawn", 3, start, (after, "grpo.evaluate_before=true")),
        Run("fixed2-3", "grpo", "fixed2", 3, start, (after, "navigate.budgets=[2]")),
        Run("fixed30-3", "grpo", "fixed30", 3, start, (after, "navigate.budgets=[30]")),
    ]
    assert arm_runs([0], [])[1] == [Run("sft-0", "eval", "sft", 0, "sft-0/checkpoints/sft")]
    with pytest.raises(ValueError, match="no policy is called fixed; there are drawn, and fixed8"):
        arm_runs([0], ["drawn", "fixed"])


def test_figures_are_of_the_same_films_beside_the_optimum(tmp_path, films):
    statuses = {"ok": 3, "answered": 1}
    wrong_branches = {film: [(n, 1) for n in range(1, 4) if n != one.plan.right] for film, one in films.items()}
    stage_1 = [
        row.model_copy(update={"nodes": [node, (*node, 1), (*node, 2)], "statuses": statuses | {"malformed": 4}})
        for row in rows(films)
        for node in wrong_branches[row.question_id][:1]
    ]
    drawn = [
        row.model_copy(update={"nodes": wrong_branches[row.question_id], "statuses": statuses})
        for row in rows(films, rights=BUDGETS)
    ]
    for name, own in {"drawn-0/before": stage_1, "drawn-0/after": drawn, "fixed8-0/after": rows(films, (8.0,))}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_lines(tmp_path / f"{name}.jsonl", [row.model_dump(mode="json") for row in own])
    figures = arm_figures(tmp_path, 0, ["drawn", "fixed8"], films, {"greedy": rows(films)})
    assert list(figures["minutes"]) == [str(round(film.seconds / 60)) for film in list(films.values())[:2]]
    at = figures["minutes"]["12"]["8"]
    of_length = [film for film in films.values() if film.width == 4]
    best = sum(best_accuracy(4, len(film.plan.look_alikes), 8) for film in of_length) / 2
    assert at["optimum"] == pytest.approx(best)
    assert at["drawn"] == {"questions": 2, "accuracy": 1.0, "calls": 8.0} and at["greedy"]["accuracy"] == 0
    assert figures["regret"]["12"] == pytest.approx({"stage_1": 1, "drawn": 1 - 1 / best, "fixed8": 1 - 1 / best})
    assert figures["left_soon"] == {"stage_1": 0, "drawn": 1, "fixed8": None}
    assert figures["well_formed"] == {"stage_1": 0.5, "drawn": 1, "fixed8": 0}
    assert figures["gain"]["drawn"]["47"] == {"2": 1, "8": 1}
    assert figures["against_fixed"]["2"] == {"above_best_fixed": 1, "best_fixed": "fixed8"}
    assert figures["steps"] == {"sft": 0, "drawn": 0, "fixed8": 0}


def test_means_are_over_seeds_and_of_what_is_there():
    assert mean_of([{"a": {"b": 1}, "c": None, "d": "x"}, {"a": {"b": 2}, "c": 0.5, "d": "y"}]) == {
        "a": {"b": 1.5}, "c": 0.5, "d": None,
    }  # fmt: skip
