"""Which trajectories of a file are replayed, with which configuration, and what is said about them.

What is in memory at one time is a step of a training, or a trajectory of an evaluation, never a whole file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.table import Column, Table
from rich.text import Text

from actors.rollout import Sampling
from pipelines.evaluation.evaluate import agents_of
from pipelines.evaluation.replay.differences import Finding, finding, same_sequence
from pipelines.evaluation.replay.long_search import LongSearchStages
from pipelines.evaluation.replay.navigation import NavigateStages
from pipelines.evaluation.replay.search import SearchStages
from pipelines.evaluation.replay.sources import Sources
from pipelines.evaluation.replay.stages import Stages, Step, Tolerances
from pipelines.stage.connection import connect
from pipelines.stage.workers import Workers, complete, workers
from vsr1.config import Config
from vsr1.episode.sample import SampleId
from vsr1.episode.trajectory import Trajectory
from vsr1.runs.folder import EVALUATION_LOG, TRAINING_LOG
from vsr1.runs.trajectories import read_log
from vsr1.settings.parts import AgentConfig

# The learner in float32 is within 1e-3 of the engine; what bfloat16 adds is rough, for both round.
TOLERANCES = {"float32": Tolerances(1e-4, 1e-3), "bfloat16": Tolerances(2e-2, 0.25)}
MOST_LISTED = 20
_STYLES = {"ok": "green", "differs": "bold red", "not checked": "yellow"}
STAGES: dict[str, type[Stages]] = {
    "search": SearchStages, "navigate": NavigateStages, "search_then_navigate": LongSearchStages,
}  # fmt: skip
Replies = list[tuple[list[str], list[int]]]  # of each turn the videos shown and the tokens of the reply


class ReplayError(ValueError):
    """A replay that was asked for in vain; the message says what there is."""


@dataclass(frozen=True)
class Replayed:
    """What a replay found about one trajectory, by stage."""

    query: str
    sample: int
    step: int
    findings: list[Finding]

    @property
    def first(self) -> Finding | None:
        """Return the first stage that differs."""
        return next((item for item in self.findings if item.status == "differs"), None)

    @property
    def name(self) -> str:
        """Return what messages call the trajectory."""
        return f"query {self.query}, sample {self.sample}" + (f", step {self.step}" if self.step else "")

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        values = asdict(self)
        return {**values, "first": self.first and self.first.stage, "stages": values.pop("findings")}

    def table(self) -> Table:
        """Return a row a stage, for the terminal."""
        table = Table(*(Column(heading, overflow="fold") for heading in ("stage", "", "what")), title=self.name)
        for item in self.findings:
            table.add_row(item.stage, Text(item.status, _STYLES[item.status]), Text(item.detail))
        return table


def replay(
    file: Path,
    config: Config,
    *,
    query: str | None = None,
    sample: int | None = None,
    step: int | None = None,
    rerun: bool = False,
    others: Workers | None = None,
    score_tolerance: float | None = None,
    logprob_tolerance: float | None = None,
) -> list[Replayed]:
    """Replay the trajectories of a file that fit, all of them by default.

    Args:
        file: `train_trajectories.jsonl`, or `<name>.trajectories.jsonl` of an evaluation.
        config: of the run.
        rerun: of an evaluation, also play each again through a real engine, which starts Ray.
        others: running workers that play them, whose engines hold the weights of `model.policy`; None starts some.
        score_tolerance, logprob_tolerance: by default those of the run's dtype.

    Raises:
        ReplayError: no trajectory fits, or a rerun of sampled ones.
    """
    is_training = file.name == TRAINING_LOG
    if rerun and is_training:
        raise ReplayError(f"{file} holds sampled rollouts; --rerun plays greedy ones again, those of an evaluation")
    agent = _agent_of(file, config)
    sources = Sources(config, agent, file.parent, is_training=is_training)
    changes = {"score": score_tolerance, "logprob": logprob_tolerance}
    chosen = {name: value for name, value in changes.items() if value is not None}
    stages = STAGES[config.environment](sources, replace(TOLERANCES[config.model.dtype], **chosen))
    results: list[Replayed] = []
    recorded: dict[str, Replies] = {}  # by query id
    unfit: list[str] = []
    for members in steps_of(file) if is_training else ((logged,) for logged in read_log(file)):
        for logged in members:
            result = Replayed(sources.query_of(logged.trajectory), logged.trajectory.id.sample, logged.step, [])
            if query in (None, result.query) and sample in (None, result.sample) and step in (None, result.step):
                result.findings.extend(stages.findings(logged, members))
                results.append(result)
                if rerun:
                    recorded[result.query] = _replies(logged.trajectory)
            else:
                unfit.append(result.name)
    if not results:
        listed = unfit if len(unfit) <= MOST_LISTED else [*unfit[:MOST_LISTED], f"and {len(unfit)} in all"]
        raise ReplayError(f"no trajectory of {file} fits; there is: {'; '.join(listed) or 'none'}")
    if rerun:
        reruns = dict(_reruns(config, agent, sources, recorded, others))
        for result in results:
            result.findings.append(reruns[result.query])
    return sorted(results, key=lambda result: result.step)


def steps_of(file: Path) -> Iterator[Step]:
    """Yield the trajectories of each step of a training, in the order of the file.

    A file that several runs wrote holds a step more than once: the last one counts.
    """
    starts: dict[int, int] = {}  # by step, the row with which its last run begins
    step, seen = None, set[tuple[SampleId, int]]()
    for number, logged in enumerate(read_log(file)):
        key = logged.trajectory.id, logged.trajectory.turns[0].seed
        if logged.step != step or key in seen:
            step, seen = logged.step, set()
            starts[logged.step] = number
        seen.add(key)
    rows = (logged for number, logged in enumerate(read_log(file)) if number >= starts[logged.step])
    for _, members in groupby(rows, key=lambda logged: logged.step):
        yield tuple(members)


def _agent_of(file: Path, config: Config) -> AgentConfig:
    """Return the agent that played: one of `eval.agents` if the file's name ends in its name."""
    label = file.name.removesuffix(EVALUATION_LOG)
    agents = agents_of(config)
    return next((agent for name, agent in agents.items() if name and label.endswith(f"-{name}")), agents[""])


def _replies(trajectory: Trajectory[Any, Any]) -> Replies:
    return [([clip.video_id for clip in turn.clips], turn.response_token_ids) for turn in trajectory.turns]


def _reruns(
    config: Config, agent: AgentConfig, sources: Sources, recorded: dict[str, Replies], others: Workers | None
) -> Iterator[tuple[str, Finding]]:
    """Play queries again through the production workers, greedy; yield query ids and what the new replies say."""
    tasks = [sources.task(query) for query in recorded]
    connect(config)
    with nullcontext(others) if others else workers(config, sources.split) as players:
        for outcome in players.play(sources.split, tasks, agent, Sampling(sources.top_k)):
            [trajectory], _ = complete([outcome])
            query = sources.query_of(trajectory)
            yield query, finding("rerun", _same_replies, recorded[query], _replies(trajectory))


def _same_replies(recorded: Replies, result: Replies) -> str:
    for turn, ((_, old), (_, new)) in enumerate(zip(recorded, result, strict=False), start=1):
        same_sequence(f"turn {turn}, reply", old, new)
    same_sequence("videos shown", [videos for videos, _ in recorded], [videos for videos, _ in result])
    return f"{len(recorded)} turns with identical tokens"
