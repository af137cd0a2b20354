"""Stage 2, the live loop: roll out, reward, compare within groups, learn, push the weights, repeat.

python -m pipelines.grpo --config configs/toy.yaml [section.key=value ...]
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import ray
import torch

from actors.learner import LearnerGroup
from pipelines.data.build import ensure_dataset
from pipelines.examples import trained_examples
from pipelines.plan import capacity, placement_plan
from pipelines.rollout_metrics import rollout_metrics
from pipelines.services import connect, services
from pipelines.tasks import group_of, prompt_stream
from pipelines.trajectory_log import append_trajectories
from vsr1.agent.trajectory import Trajectory
from vsr1.config import Config
from vsr1.rl.advantages import group_advantages
from vsr1.runlog import RunLog

Progress = Callable[[str, int, int], None]


def train(config: Config, progress: Progress | None = None) -> Path:
    """Run Stage 2 and return the checkpoint folder it wrote.

    Raises:
        PlanError: the cluster cannot hold the actors. Errors of actors come through with their names.
    """
    connect(config)
    ensure_dataset(config)
    placement_plan(config, capacity(config)).check()
    run, settings = config.run_dir, config.grpo
    with services(config, "train") as world, RunLog(run) as log:
        learners = LearnerGroup(config)
        ray.get(learners.setup())
        stream = prompt_stream(config)
        for step in range(1, settings.steps + 1):
            started = time.monotonic()
            tasks = []
            for i, prompt in enumerate(islice(stream, settings.prompts_per_step)):
                tasks += group_of(prompt, settings.group_size, seed=config.seed + 1000 * (step * 100 + i))
            trajectories = []
            for trajectory in world.rollout(tasks, config.rollout.temperature):
                trajectories.append(trajectory)
                if progress:
                    progress(f"step {step}/{settings.steps} rollouts", len(trajectories), len(tasks))
            rolled = time.monotonic()
            trajectories = sorted(world.score(trajectories), key=lambda t: (t.query_id, t.sample))
            advantages = _advantages(trajectories, settings.advantage_epsilon)
            examples = trained_examples(trajectories, advantages, world.clips)
            learned = learners.step(examples)
            stepped = time.monotonic()
            world.push(learners, version=step)
            pushed = time.monotonic()
            timing = {"rollout": rolled - started, "learn": stepped - rolled, "push": pushed - stepped}
            log.log(
                "grpo", step, rollout_metrics(trajectories) | learned | {f"seconds/{k}": v for k, v in timing.items()}
            )
            append_trajectories(run / "train_trajectories.jsonl", step, trajectories)
        target = run / "checkpoints" / "grpo"
        learners.save(target)
        learners.close()
    return target


def _advantages(trajectories: list[Trajectory], epsilon: float) -> list[float]:
    """One advantage a trajectory, in order; trajectories of a query form its group."""
    rewards = torch.tensor([trajectory.reward for trajectory in trajectories])
    _, groups = np.unique([trajectory.query_id for trajectory in trajectories], return_inverse=True)
    return group_advantages(rewards, torch.from_numpy(groups), divide_by_std=True, epsilon=epsilon).tolist()


if __name__ == "__main__":
    from pipelines.cli import run_job

    run_job(train)
