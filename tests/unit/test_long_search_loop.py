"""The loop of Stage 2 plays searches that navigate: one trace, one budget, and workers that die change nothing."""

import random
from collections import defaultdict
from dataclasses import replace
from typing import Any

from pretended_ray import PretendedRay
from scripted_stage import (
    VIDEOS,
    ScriptedEngine,
    ScriptedReply,
    ScriptedStream,
    ScriptedWorker,
    Stage,
    environment_stage,
)

from vsr1.config import Config
from vsr1.episode.environment import Prompt
from vsr1.navigate.calls import ToolCall, ToolError, ToolResult
from vsr1.runs.folder import TRAINING_LOG
from vsr1.runs.scalars import SCALARS, read_scalars
from vsr1.runs.trajectories import read_log
from vsr1.search_then_navigate.record import LongSearchTask, calls_of, judgements, spent, visits
from vsr1.video.clips import Clip

LONG = VIDEOS[::2]  # too long for one look


class WalkingEngine(ScriptedEngine):
    """In a long film half of the replies call for a part; the others judge, as those of a search do."""

    async def generate(self, prompt: Prompt, *, seed: int, latents: int, **rest: Any) -> ScriptedReply:
        reply = await super().generate(prompt, seed=seed, latents=latents, **rest)
        reply.prompt_token_ids = prompt.token_ids(lambda text: [len(text)], 0)
        draw = random.Random(f"{seed} walks")
        if prompt.clips or draw.random() < 0.5:
            return reply
        text = f"<think>on</think><tool>caption(1,{draw.randint(1, 5)})</tool>"
        return replace(reply, text=text, finish_reason="stop", latents=None, soft_tokens=None)


class Walker(ScriptedWorker):
    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._engine = WalkingEngine()

    async def _clip(self, split: str, video_id: str) -> Clip:
        clip = await super()._clip(split, video_id)
        return replace(clip, length=2000.0) if video_id in LONG else clip

    async def _use(self, split: str, call: ToolCall) -> ToolResult:
        if call.film == LONG[-1] and call.node == (1, 5):
            raise ToolError("no answer")
        return ToolResult(f"seen {call.node}")


class LongStream(ScriptedStream):
    def task(self, prompt: str) -> LongSearchTask:
        return LongSearchTask(**vars(super().task(prompt)), budget=float(int(prompt.split("/")[1]) % 3))


def config_of(folder: Any) -> Config:
    return Config.model_validate(
        {
            "environment": "search_then_navigate",
            "run_dir": folder,
            "grpo": {
                "learner": {"ranks": 1}, "steps": 4, "prompts_per_step": 2, "group_size": 3, "state_every": 2,
                "max_failed_fraction": 0.8, "poison_deaths": 50,
            },
        }
    )  # fmt: skip


def stage_of(cluster: PretendedRay, config: Config) -> Stage:
    return environment_stage(cluster, config, Walker, LongStream)


def test_a_run_trains_on_calls_and_judgements_of_one_trace(quick_cluster, tmp_path):
    config = config_of(tmp_path)
    stage_of(quick_cluster, config).run()
    trained = [logged.trajectory for logged in read_log(config.run_dir / TRAINING_LOG)]
    assert any(calls_of(one) for one in trained) and all(judgements(one).turns for one in trained)
    assert all(spent(one) <= one.task.budget for one in trained)
    for one in trained:
        films = [visit.judgement.record.video_id for visit in visits(one)]
        assert len(set(films)) == len(films) <= config.agent.max_turns
        assert all(not visit.calls for visit in visits(one) if visit.judgement.record.video_id not in LONG)
        assert [turn.number for turn in one.turns] == list(range(1, len(one.turns) + 1))
    scalars = defaultdict(list)
    for row in read_scalars(config.run_dir / SCALARS):
        scalars[row["name"]].append(row["value"])
    assert len(scalars["R@1_after"]) == len(scalars["spent"]) == len(scalars["reward/location"]) == 4


def test_workers_that_die_change_nothing(quick_cluster, tmp_path):
    weights = stage_of(quick_cluster, config_of(tmp_path / "one")).run()
    stage = stage_of(quick_cluster, config_of(tmp_path / "other"))
    frames = iter(range(10**6))

    def kill(_: Any) -> None:
        if next(frames) % 23 == 11:
            stage.fleet.kill("rollout-0")

    stage.on_frame = kill
    assert stage.run() == weights and stage.fleet.deaths > 0
