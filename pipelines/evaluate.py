"""Evaluation: the agent, greedy, over every query of a split, on the same rollout workers that training uses.

python -m pipelines.evaluate --config configs/toy.yaml [section.key=value ...]
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from pipelines.data.build import ensure_dataset
from pipelines.services import Outcome, Services, complete, connect, services
from pipelines.tasks import evaluation_tasks
from pipelines.trajectory_log import append_trajectories
from vsr1.agent.predictions import prediction_row
from vsr1.agent.trajectory import Trajectory
from vsr1.config import AgentConfig, Config
from vsr1.formats.dataset import DatasetFolder
from vsr1.metrics.summary import EvalSummary, summarise

Progress = Callable[[str, int, int], None]


def evaluate(
    config: Config, progress: Progress | None = None, *, name: str = "eval"
) -> tuple[EvalSummary, list[Trajectory]]:
    """Run every query of `eval.split` with `agent`, then with each of `eval.agents`; the result is the first's.

    Writes `<run_dir>/<name>.json` and `<name>.trajectories.jsonl`, and `<name>-<agent>.json` likewise.
    """
    connect(config)
    ensure_dataset(config)
    with services(config, config.eval.split) as world:
        return evaluate_agents(world, config, config.eval.split, progress, name)


def evaluate_agents(
    world: Services, config: Config, split: str, progress: Progress | None, name: str
) -> tuple[EvalSummary, list[Trajectory]]:
    """As `evaluate`, on running services and any split."""
    done = {}
    for agent_name, changes in {"": {}, **config.eval.agents}.items():
        agent = AgentConfig.model_validate(config.agent.model_dump() | changes)
        label = f"{name}-{agent_name}" if agent_name else name
        done[agent_name] = summary, trajectories = evaluate_split(world, config, agent, split, progress, label)
        target = Path(config.run_dir)
        target.mkdir(parents=True, exist_ok=True)
        (target / f"{label}.json").write_text(json.dumps(summary.to_json(), indent=2), encoding="utf-8")
        lines = target / f"{label}.trajectories.jsonl"
        lines.unlink(missing_ok=True)
        append_trajectories(lines, 0, trajectories)
    return done[""]


def evaluate_split(
    world: Services, config: Config, agent: AgentConfig, split: str, progress: Progress | None, name: str
) -> tuple[EvalSummary, list[Trajectory]]:
    """Run every query of a split with one agent on running services.

    Raises:
        RolloutError: a query failed.
    """
    tasks = evaluation_tasks(config, split)
    corpus = json.loads(DatasetFolder(config.data.root).docid2row(split).read_text(encoding="utf-8"))
    outcomes: list[Outcome] = []
    for outcome in world.rollout(split, tasks, agent, temperature=0.0):
        outcomes.append(outcome)
        if progress:
            progress(f"{name} queries", len(outcomes), len(tasks))
    played, _ = complete(outcomes)
    trajectories, _ = complete(world.score(sorted(played, key=lambda t: t.query_id)))
    position = {task.query_id: index for index, task in enumerate(tasks)}
    rows = [
        prediction_row(item, position[item.query_id], max_turns=agent.max_turns, corpus_size=len(corpus))
        for item in trajectories
    ]
    return summarise(rows), trajectories


if __name__ == "__main__":
    from pipelines.cli import run_job

    run_job(evaluate)
