"""Evaluation: the agent, greedy, over every query of a split, on the same rollout workers that training uses.

python -m pipelines.evaluate --config configs/toy.yaml [section.key=value ...]
"""

from __future__ import annotations

import json
import time
from statistics import mean

from pipelines.data.build import ensure_dataset
from pipelines.post_mortem import kept_in_folder
from pipelines.progress import QUIET, Progress
from pipelines.run_folder import EVALUATION_LOG
from pipelines.services import Services, complete, connect, services
from pipelines.tasks import evaluation_tasks
from pipelines.trajectory_log import append_trajectories
from vsr1.agent.trajectory import Trajectory
from vsr1.config import AgentConfig, Config
from vsr1.formats.dataset import DatasetFolder
from vsr1.metrics.summary import EvalSummary, summarise


def evaluate(config: Config, progress: Progress = QUIET, *, name: str = "eval") -> tuple[EvalSummary, list[Trajectory]]:
    """Run every query of `eval.split` with `agent`, then with each of `eval.agents`; the result is the first's.

    Writes `<run_dir>/<name>.json` and `<name>.trajectories.jsonl`, and `<name>-<agent>.json` likewise.
    """
    with kept_in_folder(config, name):
        connect(config)
        ensure_dataset(config)
        with services(config, config.eval.split, progress=progress) as world:
            workers = {"rollout": len(world.rollouts), "retrieval": 1, "rewards": len(world.rewards)}
            progress.begin(name, 1, workers)
            began = time.monotonic()
            summary, trajectories = evaluate_agents(world, config, config.eval.split, name)
        values = {"reward": mean(t.reward for t in trajectories), "R@1 after": summary.refined.recall_at_1}
        progress.step(1, values, {"evaluate": time.monotonic() - began})
    return summary, trajectories


def evaluate_agents(world: Services, config: Config, split: str, name: str) -> tuple[EvalSummary, list[Trajectory]]:
    """As `evaluate`, on running services and any split."""
    done = {}
    for agent_name, changes in {"": {}, **config.eval.agents}.items():
        agent = AgentConfig.model_validate(config.agent.model_dump() | changes)
        label = f"{name}-{agent_name}" if agent_name else name
        done[agent_name] = summary, trajectories = evaluate_split(world, config, agent, split, label)
        config.run_dir.mkdir(parents=True, exist_ok=True)
        (config.run_dir / f"{label}.json").write_text(json.dumps(summary.to_json(), indent=2), encoding="utf-8")
        lines = config.run_dir / f"{label}{EVALUATION_LOG}"
        lines.unlink(missing_ok=True)
        append_trajectories(lines, 0, trajectories)
    return done[""]


def evaluate_split(
    world: Services, config: Config, agent: AgentConfig, split: str, name: str
) -> tuple[EvalSummary, list[Trajectory]]:
    """Run every query of a split with one agent on running services.

    Raises:
        RolloutError: a query failed.
    """
    tasks = evaluation_tasks(config, split)
    corpus = json.loads(DatasetFolder(config.data.root).docid2row(split).read_text(encoding="utf-8"))
    played, _ = complete(list(world.rollout(split, tasks, agent, temperature=0.0, phase=f"{name} queries")))
    trajectories, _ = complete(world.score(sorted(played, key=lambda t: t.query_id)))
    return summarise(trajectories, len(corpus)), trajectories


if __name__ == "__main__":
    from pipelines.cli import run_job

    run_job(evaluate)
