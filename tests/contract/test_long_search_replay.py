"""A run of searches that navigate replays clean, and what was tampered with is named by its stage."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any

import pytest
from long_search_runs import write_long_search_run

from pipelines.evaluation.replay.command import Replayed, replay
from pipelines.evaluation.replay.long_search import LongSearchStages
from pipelines.evaluation.replay.sources import Sources
from pipelines.evaluation.replay.stages import Tolerances
from pipelines.train.environments import training_of
from vsr1.config import Config
from vsr1.model.embedder import Embedder
from vsr1.runs.folder import TRAINING_LOG
from vsr1.runs.trajectories import read_log
from vsr1.search_then_navigate.record import is_judgement

from .test_navigate_replay import as_learned, replayed_after, statuses, tokens_of

pytestmark = pytest.mark.timeout(300)
Row = dict[str, Any]


@pytest.fixture(scope="module")
def config(policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run whose tokens, log-probs and loss are those of the policy and its learner."""
    embedder = policy_folder.parent / "embedder"
    config = write_long_search_run(
        tmp_path_factory.mktemp("long"),
        ids=tokens_of(policy_folder),
        embedder=Embedder.load(embedder),
        model={"policy": policy_folder, "embedder": embedder, "device": "cpu", "dtype": "float32"},
        rollout={"transfer": "file"},
        eval={"split": "test", "top_k": 3},
        grpo={"group_size": 3, "negatives": 1, "objective": {"balance_verdicts": True}},
        retrieval={"top_k": 3, "shards": 1},
    )
    return as_learned(config)


def test_training_replays_clean_to_the_loss(config: Config) -> None:
    results = replay(config.run_dir / TRAINING_LOG, config)
    assert [(one.query, one.sample) for one in results] == [("train-0000", sample) for sample in range(3)]
    for one in results:
        assert list(statuses(one)) == [
            "clip", "prompt", "parse", "retrieval", "calls", "rewards", "advantage", "logprobs", "grpo",
        ]  # fmt: skip
        assert set(statuses(one).values()) == {"ok"}, one.findings


def test_judgements_weigh_as_in_training(config: Config) -> None:
    """The loss of so small a step hardly depends on it: the advantages of a group add up to nothing."""
    rows = list(read_log(config.run_dir / TRAINING_LOG))
    rows[0].trajectory.task = replace(rows[0].trajectory.task, gt_video="another")  # four wrong looks to two right ones
    judged = [[is_judgement(turn) for turn in row.trajectory.turns] for row in rows]
    stages = LongSearchStages(Sources(config, config.agent, config.run_dir, is_training=True), Tolerances(0.0, 0.0))
    credits = [row.credits for row in rows]
    learned = training_of(config).examples([row.trajectory for row in rows], credits, config)
    replayed, recorded = (
        [credit.tokens for turns, kinds in zip(step, judged, strict=True) for credit in compress(turns, kinds)]
        for step in (stages._weighed(rows), credits)
    )
    assert replayed == [example.sampled.advantage for example in learned[: len(replayed)]]
    assert sorted({now / then for now, then in zip(replayed, recorded, strict=True)}) == pytest.approx([0.75, 1.5])


def test_an_evaluation_replays_clean_under_each_budget(config: Config) -> None:
    results = replay(config.run_dir / "after.trajectories.jsonl", config)
    assert [one.query for one in results] == ["1_fig@2", "2_fig@2", "1_fig@6", "2_fig@6"]
    for one in results:
        assert [stage for stage, status in statuses(one).items() if status != "ok"] == ["advantage", "grpo"]
    [one] = replay(config.run_dir / "after.trajectories.jsonl", config, query="2_fig@6")
    assert one.query == "2_fig@6"


@pytest.fixture
def tampered(config: Config, tmp_path: Path) -> Callable[[Callable[[Row], None]], Replayed]:
    """Replays the sample that found its moment, after a change of its row."""
    return partial(replayed_after, config, tmp_path)


def _judgement(row: Row) -> Row:
    record: Row = next(turn["record"] for turn in row["turns"] if "verdict" in turn["record"])
    return record


def _call(row: Row) -> Row:
    record: Row = next(turn["record"] for turn in row["turns"] if "tool" in turn["record"])
    return record


def _clip(row: Row) -> None:
    row["turns"][-1]["clips"][0][1] = "0" * 64


def _score(row: Row) -> None:
    _judgement(row)["retrieved"][0][1] += 0.01


def _rank(row: Row) -> None:
    _judgement(row)["gt_rank_before"] += 5


def _left(row: Row) -> None:
    _call(row)["left"] += 1


def _verdict(row: Row) -> None:
    row["turns"][-1]["record"]["verdict"] = "unknown"


def _span(row: Row) -> None:
    row["turns"][-1]["record"]["span"][1] += 1


def _reward(row: Row) -> None:
    row["reward"] += 0.25


@pytest.mark.parametrize(
    ("change", "stage", "says"),
    [
        (_clip, "clip", "content of clip train-0000@"),
        (_score, "retrieval", "turn 1, retrieved, scores of the videos: differs by 0.01"),
        (_rank, "retrieval", "rank of the right video: recorded"),
        (_left, "calls", ", left: recorded"),
        (_span, "calls", ", span: recorded"),
        (_reward, "rewards", "reward: differs by 0.25 at most"),
    ],
)
def test_what_was_tampered_with_is_the_first_to_differ(
    tampered: Callable[..., Replayed], change: Callable[[Row], None], stage: str, says: str
) -> None:
    one = tampered(change)
    assert one.first is not None
    assert (one.first.stage, says in one.first.detail) == (stage, True), one.findings


def test_another_verdict_is_told_by_the_turn_that_judged(tampered: Callable[..., Replayed]) -> None:
    one = tampered(_verdict)
    details = {item.stage: item.detail for item in one.findings if item.status == "differs"}
    assert "verdict: recorded 'unknown', recomputed 'matched'" in details["calls"]
