"""Which trajectories of a file are replayed, with which configuration, and what is said about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.table import Table

from actors.rollout import Sampling
from pipelines.evaluation.replay.differences import Finding, finding, same_sequence
from pipelines.evaluation.replay.sources import Sources
from pipelines.evaluation.replay.stages import Stages, Step, Tolerances
from vsr1.config import Config
from vsr1.runs.folder import EVALUATION_LOG, TRAINING_LOG
from vsr1.runs.trajectories import LoggedTrajectory, read_log
from vsr1.search.record import SearchTrajectory
from vsr1.settings.parts import AgentConfig

# The learner in float32 is within 1e-3 of the engine; what bfloat16 adds is rough, for both round.
TOLERANCES = {"float32": Tolerances(1e-4, 1e-3), "bfloat16": Tolerances(2e-2, 0.25)}
MOST_LISTED = 20
_STYLES = {"ok": "green", "differs": "bold red", "not checked": "yellow"}


class ReplayError(ValueError):
    """A replay that was asked for in vain; the message says what there is."""


@dataclass(frozen=True)
class Replayed:
    query: str
    sample: int
    step: int
    findings: list[Finding]

    @property
    def first(self) -> Finding | None:
        """The first stage that differs."""
        return next((found for found in self.findings if found.status == "differs"), None)

    @property
    def name(self) -> str:
        return f"query {self.query}, sample {self.sample}" + (f", step {self.step}" if self.step else "")

    def to_json(self) -> dict[str, Any]:
        own = {"query": self.query, "sample": self.sample, "step": self.step}
        return {**own, "first": self.first and self.first.stage, "stages": [asdict(found) for found in self.findings]}

    def table(self) -> Table:
        table = Table(title=self.name)
        for heading in ("stage", "", "what"):
            table.add_column(heading, overflow="fold")
        for found in self.findings:
            style = _STYLES[found.status]
            table.add_row(found.stage, f"[{style}]{found.status}[/]", found.detail.replace("[", r"\["))
        return table


def replay(
    file: Path,
    config: Config,
    *,
    query: str | None = None,
    sample: int | None = None,
    step: int | None = None,
    rerun: bool = False,
    tolerances: Tolerances | None = None,
) -> list[Replayed]:
    """Replay the trajectories of a file that fit, all of them by default.

    Args:
        file: `train_trajectories.jsonl`, or `<name>.trajectories.jsonl` of an evaluation.
        config: of the run.
        rerun: of an evaluation, also play each again through a real engine, which starts Ray.
        tolerances: by default those of the run's dtype.

    Raises:
        ReplayError: no trajectory fits, or a rerun of sampled ones.
    """
    is_training = file.name == TRAINING_LOG
    if rerun and is_training:
        raise ReplayError(f"{file} holds sampled rollouts; --rerun plays greedy ones again, those of an evaluation")
    steps = last_steps(list(read_log(file)))
    wanted = [
        (logged, steps[number])
        for number in sorted(steps)
        for logged in steps[number]
        if query in (None, logged.trajectory.task.query_id)
        and sample in (None, logged.trajectory.id.sample)
        and step in (None, number)
    ]
    if not wanted:
        raise ReplayError(f"no trajectory of {file} fits; {_there_is(steps)}")
    agent = _agent_of(file, config)
    sources = Sources(config, agent, file.parent, is_training=is_training)
    stages = Stages(sources, tolerances or TOLERANCES[config.model.dtype])
    found = [stages.findings(logged, of_step) for logged, of_step in wanted]
    if rerun:
        trajectories = [logged.trajectory for logged, _ in wanted]
        played = _played_again(config, agent, sources, trajectories)
        for one, new, findings in zip(trajectories, played, found, strict=True):
            findings.append(finding("rerun", _same_tokens, one, new))
    return [
        Replayed(logged.trajectory.task.query_id, logged.trajectory.id.sample, logged.step, findings)
        for (logged, _), findings in zip(wanted, found, strict=True)
    ]


def last_steps(logged: Sequence[LoggedTrajectory]) -> dict[int, Step]:
    """Trajectories by step. A file that several runs wrote holds a step more than once: the last one counts."""
    steps: dict[int, Step] = {}
    for number, members in groupby(logged, key=lambda member: member.step):
        block: dict[tuple[str, int, int], LoggedTrajectory] = {}
        for member in members:
            key = member.trajectory.task.query_id, member.trajectory.id.sample, member.trajectory.seed
            if key in block:  # one step, twice in a row
                block = {}
            block[key] = member
        steps[number] = tuple(block.values())
    return steps


def _there_is(steps: dict[int, Step]) -> str:
    lines = []
    for number, members in steps.items():
        samples: dict[str, list[int]] = {}
        for member in members:
            samples.setdefault(member.trajectory.task.query_id, []).append(member.trajectory.id.sample)
        told = _first_of([f"{query} ({', '.join(map(str, of_query))})" for query, of_query in samples.items()])
        lines.append(f"step {number}: {'; '.join(told)}")
    return "there is, with samples in brackets: " + " | ".join(_first_of(lines))


def _first_of(items: list[str]) -> list[str]:
    return items if len(items) <= MOST_LISTED else [*items[:MOST_LISTED], f"and {len(items) - MOST_LISTED} more"]


def _agent_of(file: Path, config: Config) -> AgentConfig:
    """The agent that played: one of `eval.agents` if the file's name ends in its name."""
    label = file.name.removesuffix(EVALUATION_LOG)
    changes = next((changes for name, changes in config.eval.agents.items() if label.endswith(f"-{name}")), {})
    return AgentConfig.model_validate(config.agent.model_dump() | changes)


def _played_again(
    config: Config, agent: AgentConfig, sources: Sources, trajectories: list[SearchTrajectory]
) -> list[SearchTrajectory]:
    """The same tasks through the production services, greedy."""
    from pipelines.stage.connection import connect
    from pipelines.stage.workers import complete, services

    tasks = [sources.task(one.task.query_id) for one in trajectories]
    connect(config)
    with services(config, sources.split) as world:
        played, _ = complete(list(world.rollout(sources.split, tasks, agent, Sampling(sources.top_k))))
    by_query = {one.task.query_id: one for one in played}
    return [by_query[one.task.query_id] for one in trajectories]


def _same_tokens(one: SearchTrajectory, again: SearchTrajectory) -> str:
    for old, new in zip(one.turns, again.turns, strict=False):
        same_sequence(f"turn {old.number}, reply", old.response_token_ids, new.response_token_ids)
    same_sequence("videos shown", [s.record.video_id for s in one.turns], [s.record.video_id for s in again.turns])
    return f"{len(one.turns)} turns with identical tokens"
