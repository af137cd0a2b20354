"""Stage 2, the live loop: roll out, reward, compare within groups, learn, push the weights, repeat.

python -m pipelines.grpo --config configs/toy.yaml [section.key=value ...]
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import ray

from actors.learner import LearnerGroup
from pipelines.data.build import ensure_dataset
from pipelines.evaluate import evaluate_on, evaluate_split
from pipelines.examples import trained_examples
from pipelines.groups import roll_out_groups
from pipelines.plan import capacity, grpo_splits, placement_plan
from pipelines.rollout_metrics import credit_metrics, rollout_metrics, validation_metrics
from pipelines.services import Services, connect, services
from pipelines.tasks import prompt_stream
from pipelines.trajectory_log import append_trajectories
from vsr1.config import Config
from vsr1.rl.credit import credits_of
from vsr1.runlog import RunLog

Progress = Callable[[str, int, int], None]


def train(config: Config, progress: Progress | None = None) -> Path:
    """Run Stage 2 and return the checkpoint folder it wrote.

    Raises:
        PlanError: the cluster cannot hold the actors.
        RolloutError: more samples failed than tolerated. Errors of actors come through with their names.
    """
    connect(config)
    ensure_dataset(config)
    placement_plan(config, capacity(config)).check()
    run, settings = config.run_dir, config.grpo
    with services(config, *grpo_splits(config)) as world, RunLog(run) as log:
        learners = LearnerGroup(config)
        ray.get(learners.setup())
        stream = prompt_stream(config)
        _validate(world, log, config, 0, progress)
        for step in range(1, settings.steps + 1):
            started = time.monotonic()
            groups = roll_out_groups(world, stream, config, step, progress)
            rolled = time.monotonic()
            credits = credits_of(groups.trained, settings.objective, config.agent.max_new_tokens)
            examples = trained_examples(groups.trained, credits, world.clips["train"], config)
            learned = learners.step(examples)
            stepped = time.monotonic()
            world.push(learners, version=step)
            pushed = time.monotonic()
            timing = {"rollout": rolled - started, "learn": stepped - rolled, "push": pushed - stepped}
            values = rollout_metrics(groups.trained, step - 1) | groups.metrics() | credit_metrics(credits)
            tokens = sum(len(example.response_ids) for example in examples)
            speed = {"tokens_per_second": tokens / (pushed - started)}
            log.log("grpo", step, values | learned | speed | {f"seconds/{k}": v for k, v in timing.items()})
            append_trajectories(run / "train_trajectories.jsonl", step, groups.trained)
            if step % (settings.validate_every or settings.steps + 1) == 0:
                _validate(world, log, config, step, progress)
        target = run / "checkpoints" / "grpo"
        learners.save(target)
        learners.close()
        if settings.evaluate_after:
            trained = config.model_copy(update={"model": config.model.model_copy(update={"policy": target})})
            evaluate_on(world, trained, progress, "after")
    return target


def _validate(world: Services, log: RunLog, config: Config, step: int, progress: Progress | None) -> None:
    if config.grpo.validate_every:
        split = config.grpo.val_split
        summary, _ = evaluate_split(world, config, split, progress, f"step {step} {split}")
        log.log(split, step, validation_metrics(summary))


if __name__ == "__main__":
    from pipelines.cli import run_job

    run_job(train)
