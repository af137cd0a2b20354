"""The loop of Stage 2 navigates: budgets of groups, workers that die, tools that fail, and the same end every time."""

import random
from collections import defaultdict
from typing import Any

from pretended_ray import PretendedRay
from scripted_stage import ScriptedEngine, ScriptedReply, ScriptedWorker, Stage, environment_stage

from pipelines.stage.tasks import PromptStream
from vsr1.config import Config
from vsr1.episode.environment import Prompt
from vsr1.formats.dataset import DatasetFolder
from vsr1.navigate.calls import ToolCall, ToolError, ToolResult
from vsr1.navigate.record import NavigateTask
from vsr1.runs.folder import TRAINING_LOG
from vsr1.runs.scalars import SCALARS, read_scalars
from vsr1.runs.trajectories import read_log
from vsr1.toy.long_corpus import LongFilms, write_long_corpus
from vsr1.toy.world import COLOURS

BROKEN = "train-0003"  # a film whose captions below the first level never come


class WalkingEngine(ScriptedEngine):
    """Reads parts at random, then guesses; a reply follows from its seed."""

    async def generate(self, prompt: Prompt, *, seed: int, latents: int, **rest: Any) -> ScriptedReply:
        draw = random.Random(seed)
        texts = [part for part in prompt.parts if isinstance(part, str)]
        if draw.random() < 0.3 or "Answer now" in texts[-1]:
            text = f"<think>a guess</think><answer>{draw.choice(COLOURS)}</answer>"
        else:
            text = f"<think>on</think><tool>caption({draw.randint(1, 4)},{draw.randint(1, 4)})</tool>"
        tokens = [ord(letter) for letter in text]
        ids = prompt.token_ids(lambda text: [ord(letter) for letter in text], 0)
        return ScriptedReply(ids, tokens, [-1.0] * len(tokens), text, "stop", None, None, seed, self.version)


class Walker(ScriptedWorker):
    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._engine = WalkingEngine()
        self._films = LongFilms.of_split(DatasetFolder(config.data.root), "train", 2)

    async def _use(self, split: str, call: ToolCall) -> ToolResult:
        if call.film == BROKEN and call.node is not None and len(call.node) > 1:
            raise ToolError(f"caption of film {call.film!r}: no answer")
        return self._films.answer(call)


def config_of(folder: Any) -> Config:
    config = Config.model_validate(
        {
            "environment": "navigate",
            "run_dir": folder / "run",
            "data": {"root": folder / "data"},
            "agent": {"refinement": "none"},
            "navigate": {"budgets": [1, 3, 6]},
            "grpo": {
                "learner": {"ranks": 1}, "steps": 4, "prompts_per_step": 2, "group_size": 3, "state_every": 2,
                "max_failed_fraction": 0.8, "poison_deaths": 50,
            },
        }
    )  # fmt: skip
    if not config.data.root.exists():
        write_long_corpus(DatasetFolder(config.data.root), {"train": 8}, config.navigate, 0)
    return config


def stage_of(cluster: PretendedRay, config: Config) -> Stage:
    return environment_stage(cluster, config, Walker, lambda position: PromptStream(config, position))


def test_a_run_trains_groups_of_one_budget_and_drops_what_a_tool_lost(quick_cluster, tmp_path):
    config = config_of(tmp_path)
    stage_of(quick_cluster, config).run()
    trained = [logged.trajectory for logged in read_log(config.run_dir / TRAINING_LOG)]
    assert all(isinstance(one.task, NavigateTask) for one in trained)
    budgets = defaultdict(set)
    for one in trained:
        budgets[one.id.prompt].add(one.task.budget)
    assert all(len(values) == 1 for values in budgets.values()) and len(set().union(*budgets.values())) > 1
    lost = [one for one in trained if one.task.film == BROKEN]
    assert all(turn.record.tool is None for one in lost for turn in one.turns)  # those that called nothing
    scalars = defaultdict(list)
    for row in read_scalars(config.run_dir / SCALARS):
        scalars[row["name"]].append(row["value"])
    assert sum(scalars["failed_samples/ToolError"]) > 0 and len(scalars["accuracy"]) == 4
    assert len(scalars["reward/thrift"]) == 4 and "R@1_after" not in scalars


def test_workers_that_die_change_nothing(quick_cluster, tmp_path):
    config = config_of(tmp_path)
    weights = stage_of(quick_cluster, config).run()
    stage = stage_of(quick_cluster, config_of(tmp_path).model_copy(update={"run_dir": tmp_path / "other"}))
    frames = iter(range(10**6))

    def kill(_: Any) -> None:
        if next(frames) % 23 == 11:
            stage.fleet.kill("rollout-0")

    stage.on_frame = kill
    assert stage.run() == weights and stage.fleet.deaths > 0
