"""The episodes of navigation: the environment plays them again with the recorded replies and the answers that are kept.

The next prompt is the recorded one before it, its recorded reply, and what the environment shows now.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from pipelines.evaluation.replay.differences import Differs, NotChecked, same, same_sequence
from pipelines.evaluation.replay.search import RecordedReply
from pipelines.evaluation.replay.stages import Stages
from vsr1.episode.environment import Environment, Observation
from vsr1.episode.trajectory import Trajectory
from vsr1.model.processor import pair_marks
from vsr1.navigate.calls import ToolCall, ToolError, ToolResult, Use, node_clip
from vsr1.navigate.environment import NavigateEnvironment
from vsr1.navigate.examples import navigate_examples
from vsr1.navigate.record import NavigateTurn, drawn_budget
from vsr1.rl.batch import Example
from vsr1.rl.credit import Credit
from vsr1.video.clips import Clip

SAME = ("status", "tool", "node", "words", "cost", "left", "nodes")  # the rest of a turn is what its tool took
JUDGED = ("verdict", "span", "rewrite", "video_id")  # of a turn that judges a film; the rest is of the search


class NavigateStages(Stages):
    """The checks of a run of navigation."""

    def _clips(self, trajectory: Trajectory[Any, Any]) -> str:
        clips = {clip.video_id: clip.content_hash for turn in trajectory.turns for clip in turn.clips}
        for name, content in clips.items():
            same(f"content of clip {name}", content, self._sources.content_hash(name))
        return f"{len(clips)} clips were looked at"

    def _prompts(self, trajectory: Trajectory[Any, Any]) -> str:
        observations, _ = asyncio.run(self._play(trajectory))
        before: list[int] = []
        for turn, observation in zip(trajectory.turns, observations, strict=False):
            ids = (before if observation.continues else []) + self._encoded(observation.parts)
            same_sequence(f"turn {turn.number}, prompt tokens", turn.prompt_token_ids, ids)
            before = turn.prompt_token_ids + turn.response_token_ids
        return f"{len(trajectory.last.prompt_token_ids)} tokens in the last of {len(trajectory.turns)} prompts"

    def _encoded(self, parts: Sequence[str | Clip]) -> list[int]:
        processor, ids = self._sources.processor, list[int]()
        for part in parts:
            if isinstance(part, Clip):
                ids += processor.clip_tokens(processor.grid(part), pair_marks(part.timestamps))
            else:
                ids += processor.encode(part)
        return ids

    def _replies(self, trajectory: Trajectory[Any, Any]) -> str:
        for turn in trajectory.turns:
            self._same_text(turn)
        return f"{sum(len(turn.response_token_ids) for turn in trajectory.turns)} tokens"

    def _plays(self) -> dict[str, Callable[[Any], str]]:
        return {"calls": self._calls}

    def _calls(self, trajectory: Trajectory[Any, Any]) -> str:
        self._check_task(trajectory)
        observations, result = asyncio.run(self._play(trajectory))
        for old, new in zip(trajectory.turns, result.turns, strict=False):
            for name in SAME if isinstance(old.record, NavigateTurn) else JUDGED:
                same(f"turn {old.number}, {name}", getattr(old.record, name), getattr(new.record, name, None))
        if len(observations) > len(trajectory.turns):
            raise Differs(f"the episode goes on after its last turn, {len(trajectory.turns)}")
        same("turns", len(trajectory.turns), len(result.turns))
        same("end of the episode", trajectory.end_reason, result.end_reason)
        return f"{len(result.turns)} turns, ended: {result.end_reason}"

    def _check_task(self, trajectory: Trajectory[Any, Any]) -> None:
        task, config = trajectory.task, self._sources.config
        question = self._sources.task(self._sources.query_of(trajectory))
        same("question", task, replace(question, id=task.id, budget=task.budget))
        if self._sources.is_training:
            same("budget", task.budget, drawn_budget(config.navigate.budgets, config.seed, task.id.prompt))

    async def _play(self, trajectory: Trajectory[Any, Any]) -> tuple[list[Observation], Trajectory[Any, Any]]:
        """Return what the environment shows before each reply, and after the last if it does, and the episode again."""

        async def use(call: ToolCall) -> ToolResult:
            if call.tool == "look":
                name = node_clip(call.film, call.node or ())
                return ToolResult("", self._sources.shown(name))
            turn = trajectory.turns[len(environment.trajectory().turns)].record
            asks = isinstance(turn, NavigateTurn) and (call.tool, call.node) == (turn.tool, turn.node)
            if asks and turn.status == "no_caption":
                return ToolResult(None)
            return await self._sources.films.use(call)

        environment = self._environment(trajectory, use)
        try:
            observations = [await environment.reset()]
            for turn in trajectory.turns:
                if observations[-1] is not None:
                    soft_tokens = turn.latents.get("query")  # of any values: what is searched with them is recorded
                    observations.append(await environment.step(RecordedReply(turn, soft_tokens)))
        except ToolError as error:
            raise NotChecked(str(error)) from error
        return [one for one in observations if one is not None], environment.trajectory()

    def _environment(self, trajectory: Trajectory[Any, Any], use: Use) -> Environment[Any, Any]:
        return NavigateEnvironment(trajectory.task, self._sources.config.navigate, use)

    def _turn_example(self, trajectory: Trajectory[Any, Any], place: int, credit: Credit) -> Example:
        turn = replace(trajectory.turns[place], finish_reason="stop")  # whether it is trained on was asked before
        [example] = navigate_examples([replace(trajectory, turns=[turn])], [[credit]], self._sources.config.grpo)
        return example
