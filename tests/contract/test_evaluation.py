"""Evaluation on real services: what it writes, what it goes on from, and what failed queries do to it."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

from pipelines.evaluation import evaluate
from pipelines.evaluation.replay.command import replay
from pipelines.stage.plays import Outcome
from pipelines.stage.workers import Workers, workers
from vsr1.config import Config, load_config
from vsr1.formats.atomic import read_lines
from vsr1.formats.dataset import DatasetFolder
from vsr1.metrics.predictions import read_predictions
from vsr1.metrics.summary import EvalSummary, summarise
from vsr1.runs.trajectories import read_log
from vsr1.search.record import SearchTask

REPOSITORY = Path(__file__).parents[2]
QUERIES = 24  # of `toy_data`

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, toy_data: Path, ray_cluster: None) -> Config:
    folder = tmp_path_factory.mktemp("evaluation")
    memory = ["cluster.rollout.memory_gib=1"]  # Ray offers what is free when it starts
    config = load_config(
        REPOSITORY / "configs" / "toy.yaml",
        [*memory, "retrieval.top_k=3", f"run_dir={folder / 'run'}", f"data.root={folder / 'data'}"],
    )
    copytree(toy_data, config.data.root)
    return config


@pytest.fixture(scope="module")
def world(settings: Config) -> Iterator[Workers]:
    with workers(settings, "test") as running:
        yield running


def changed(config: Config, run: Path, **eval_settings: Any) -> Config:
    return config.model_copy(update={"run_dir": run, "eval": config.eval.model_copy(update=eval_settings)})


def counted(world: Workers, config: Config) -> tuple[EvalSummary, int]:
    """The summary, and how many queries were played for it."""
    played: list[str] = []

    class Counting(Workers):
        def play(self, split: str, tasks: Sequence[SearchTask], *rest: Any) -> Iterator[Outcome]:
            played.extend(task.query_id for task in tasks)
            return super().play(split, tasks, *rest)

    counting = Counting(**{field.name: getattr(world, field.name) for field in fields(world)})
    summary, _ = evaluate.evaluate_on(counting, config, "eval")
    return summary, len(played)


def test_an_evaluation_that_was_stopped_goes_on(world: Workers, settings: Config, tmp_path: Path) -> None:
    assert counted(world, changed(settings, tmp_path, limit=2))[1] == 2
    log = tmp_path / "eval.trajectories.jsonl"
    first = log.read_text()
    log.write_text(first + '{"fingerprint": "cut o')
    summary, played = counted(world, changed(settings, tmp_path))
    assert (summary.queries, played) == (QUERIES, QUERIES - 2)
    assert log.read_text().startswith(first)
    assert len(list(read_log(log))) == QUERIES
    again, played = counted(world, changed(settings, tmp_path))
    assert played == 0
    assert again == summary
    without_services, _ = evaluate.evaluate(changed(settings, tmp_path))
    assert without_services == summary


def test_a_rerun_gives_identical_tokens(world: Workers, settings: Config, tmp_path: Path) -> None:
    config = changed(settings, tmp_path, limit=4)
    counted(world, config)
    results = replay(tmp_path / "eval.trajectories.jsonl", config, rerun=True, others=world)
    assert len(results) == 4
    for one in results:
        assert (one.findings[-1].stage, one.findings[-1].status) == ("rerun", "ok"), one.findings[-1]


def test_a_changed_setting_never_reuses_old_rows(world: Workers, settings: Config, tmp_path: Path) -> None:
    before, _ = counted(world, changed(settings, tmp_path, limit=2))
    shorter = changed(settings, tmp_path, limit=2)
    shorter = shorter.model_copy(update={"agent": settings.agent.model_copy(update={"max_turns": 1})})
    after, played = counted(world, shorter)
    assert played == 2
    assert before.fingerprint != after.fingerprint
    assert {row["fingerprint"] for row in read_lines(tmp_path / "eval.jsonl")} == {after.fingerprint}


def test_the_rows_scored_again_give_the_summary(world: Workers, settings: Config, tmp_path: Path) -> None:
    config = changed(settings, tmp_path, agents={"two": {"latents": 2, "max_turns": 1}})
    summary, _ = counted(world, config)
    rows, problems = read_predictions(tmp_path / "eval.jsonl")
    assert not problems
    written = EvalSummary.model_validate(json.loads((tmp_path / "eval.json").read_text()))
    assert written == summary
    assert summarise(rows, summary.corpus_size).model_copy(update={"settings": summary.settings}) == summary
    assert all(len(row.ranked_moments) == QUERIES for row in rows)
    turns = [turn for row in rows for turn in row.turns]
    assert {(turn.answer == "matched", turn.latent_tokens) for turn in turns} == {(True, 0), (False, 8)}
    two, _ = read_predictions(tmp_path / "eval-two.jsonl")
    of_two = {row.qid: row.turns[0].policy_rank for row in two}
    refined = [row for row in rows if row.turns[0].profile_policy_rank_by_depth]
    assert refined, "no query was refined; the test needs one"
    for row in refined:
        assert row.turns[0].profile_policy_rank_by_depth["2"] == of_two[row.qid]
        assert row.turns[0].profile_policy_rank_by_depth["8"] == row.turns[0].policy_rank


def test_queries_that_cannot_be_played_count_as_failures(world: Workers, settings: Config, tmp_path: Path) -> None:
    folder = DatasetFolder(settings.data.root)
    queries, annotations = folder.query_meta("test"), folder.annotations("test")
    kept = queries.read_text(), annotations.read_text()
    lines = kept[1].splitlines()
    elsewhere = json.loads(lines[1]) | {"video": "nowhere"}
    try:
        queries.write_text("".join(line + "\n" for line in kept[0].splitlines()[1:]))
        annotations.write_text("\n".join([lines[0], json.dumps(elsewhere), *lines[2:]]) + "\n")
        with pytest.raises(
            evaluate.EvaluationError, match=rf"2 of {QUERIES} queries failed .*query_not_found_in_meta"
        ) as raised:
            counted(world, changed(settings, tmp_path))
        assert "eval.max_failed_fraction" in str(raised.value)
        tolerant, played = counted(world, changed(settings, tmp_path, max_failed_fraction=0.5))
    finally:
        queries.write_text(kept[0])
        annotations.write_text(kept[1])
    assert played == 0  # those that could be played are there already
    assert tolerant.queries == QUERIES
    assert tolerant.failed == {"query_not_found_in_meta": 1, "pos_doc_missing": 1}
    rows = read_lines(tmp_path / "eval.jsonl")
    assert [row["status"] for row in rows] == ["failed", "failed", *["ok"] * (QUERIES - 2)]
    ranks = [row["final_rank"] for row in rows[2:]]
    assert tolerant.refined.recall_at_1 == pytest.approx(sum(rank == 1 for rank in ranks) / QUERIES)
