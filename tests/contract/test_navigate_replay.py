"""A run of navigation replays clean, and what was tampered with is named by its stage."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from navigate_runs import Ids, write_navigation_run

from pipelines.evaluation.replay.command import STAGES, Replayed, replay
from pipelines.evaluation.replay.sources import Sources
from pipelines.evaluation.replay.stages import Tolerances
from pipelines.train.environments import training_of
from vsr1.config import Config
from vsr1.formats.atomic import write_lines
from vsr1.model.processor import ClipProcessor, pair_marks
from vsr1.rl.batch import batch_totals
from vsr1.rl.credit import Credit
from vsr1.runs.folder import TRAINING_LOG
from vsr1.runs.trajectories import read_log, write_trajectories

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def config(policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run whose tokens are those of the policy, and whose log-probs and loss are what its learner makes of them."""
    config = write_navigation_run(
        tmp_path_factory.mktemp("navigate"),
        ids=tokens_of(policy_folder),
        train=1,
        test=1,
        model={
            "policy": policy_folder, "embedder": policy_folder.parent / "embedder", "device": "cpu", "dtype": "float32",
        },
        rollout={"transfer": "file"},
        eval={"split": "test"},
    )  # fmt: skip
    return as_learned(config)


def tokens_of(policy: Path) -> Ids:
    """Return what gives the tokens of a part of a prompt, as the policy has them."""
    processor = ClipProcessor(policy)

    def ids(part: Any) -> list[int]:
        if isinstance(part, str):
            return processor.encode(part)
        return processor.clip_tokens(processor.grid(part), pair_marks(part.timestamps))

    return ids


def as_learned(config: Config) -> Config:
    """Give all turns of a run the log-probs of its policy, and its step the loss that its learner makes of them."""
    for log in config.run_dir.glob("*trajectories.jsonl"):
        is_training = log.name == TRAINING_LOG
        sources = Sources(config, config.agent, config.run_dir, is_training=is_training)
        loss, stages = sources.loss(0), STAGES[config.environment](sources, Tolerances(0.0, 0.0))
        rows = list(read_log(log))
        for row in rows:
            for place, turn in enumerate(row.trajectory.turns):
                example = stages._turn_example(row.trajectory, place, Credit(0.0, 0.0))
                with torch.no_grad():
                    turn.response_logprobs = loss.logprobs([[example]]).tolist()
        write_trajectories(log, rows)
        if is_training:
            episodes = [row.trajectory for row in rows]
            examples = training_of(config).examples(episodes, [row.credits for row in rows], config)
            with torch.no_grad():
                total = sum(float(loss([[example]], batch_totals(examples))[0]) for example in examples)
            values = {"loss": total, "reward/total": fmean(row.trajectory.reward for row in rows)}
            write_lines(
                config.run_dir / "scalars.jsonl",
                [{"stage": "grpo", "step": 1, "name": name, "value": values[name], "time": 0.0} for name in values],
            )
    return config


def statuses(one: Replayed) -> dict[str, str]:
    return {item.stage: item.status for item in one.findings}


def test_training_replays_clean_to_the_loss(config: Config) -> None:
    results = replay(config.run_dir / TRAINING_LOG, config)
    assert [(one.query, one.sample, one.step) for one in results] == [("train-0000", sample, 1) for sample in range(3)]
    for one in results:
        assert set(statuses(one).values()) == {"ok"}, one.findings


def test_an_evaluation_replays_clean_under_each_budget(config: Config) -> None:
    results = replay(config.run_dir / "after.trajectories.jsonl", config)
    assert [one.query for one in results] == ["test-0000@2", "test-0000@6", "test-0000@16"]
    for one in results:
        found = statuses(one)
        assert (found.pop("advantage"), found.pop("grpo")) == ("not checked", "not checked")
        assert set(found.values()) == {"ok"}, one.findings
    [one] = replay(config.run_dir / "after.trajectories.jsonl", config, query="test-0000@6")
    assert one.query == "test-0000@6"


@pytest.fixture
def tampered(config: Config, tmp_path: Path):
    """Replays the sample that looked at a part, after a change of its row."""
    return partial(replayed_after, config, tmp_path)


def replayed_after(config: Config, folder: Path, change: Callable[[dict[str, Any]], None]) -> Replayed:
    """Replay the first sample of training from a copy of the run, after a change of its row."""
    shutil.copytree(config.run_dir, folder / "run")
    log = folder / "run" / TRAINING_LOG
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    change(rows[0])
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    [one] = replay(log, config, sample=0)
    return one


def _clip(row):
    row["turns"][-1]["clips"][0][1] = "0" * 64


def _prompt(row):
    row["turns"][1]["prompt_token_ids"][-1] += 1


def _token(row):
    row["turns"][-1]["response_token_ids"][1] += 1  # of another turn it would be in the next prompt too


def _left(row):
    row["turns"][1]["record"]["left"] += 1


def _named(row):
    row["turns"][0]["record"]["nodes"].pop()


def _budget(row):
    row["task"]["budget"] += 1


def _answer(row):
    row["task"]["answer"] = "mauve"


def _end(row):
    row["end_reason"] = "abstained"


def _reward(row):
    row["reward"] += 0.25


def _logprob(row):
    row["turns"][0]["response_logprobs"][2] -= 0.125


@pytest.mark.parametrize(
    ("change", "stage", "says"),
    [
        (_clip, "clip", "content of clip train-0000@"),
        (_prompt, "prompt", "turn 2, prompt tokens, place"),
        (_token, "parse", ", text of the reply's tokens, place"),
        (_left, "calls", "turn 2, left: recorded"),
        (_named, "calls", "turn 1, nodes: recorded"),
        (_answer, "calls", "question: recorded"),
        (_end, "calls", "end of the episode: recorded 'abstained', recomputed 'answered'"),
        (_reward, "rewards", "reward: differs by 0.25 at most"),
        (_logprob, "logprobs", "turn 1, log-probs: differs by 0.125 at most"),
    ],
)
def test_what_was_tampered_with_is_the_first_to_differ(tampered, change, stage, says) -> None:
    one = tampered(change)
    assert one.first is not None
    assert (one.first.stage, says in one.first.detail) == (stage, True), one.findings


def test_a_budget_that_was_not_drawn_is_named(tampered) -> None:
    one = tampered(_budget)
    assert any(item.stage == "calls" and "budget: recorded" in item.detail for item in one.findings), one.findings


def test_an_answer_that_is_not_kept_is_not_called_wrong(config: Config, tmp_path: Path) -> None:
    shutil.copytree(config.data.root, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "navigate" / "answers")
    moved = config.model_copy(update={"data": config.data.model_copy(update={"root": tmp_path / "data"})})
    [one] = replay(config.run_dir / TRAINING_LOG, moved, sample=0)
    findings = {item.stage: item for item in one.findings}
    assert findings["calls"].status == findings["prompt"].status == "not checked"
    assert "keeps no answer of caption at (1,) of film 'train-0000'" in findings["calls"].detail
    assert one.first is None
