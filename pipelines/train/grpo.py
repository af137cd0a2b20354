"""Stage 2, the live loop: roll out, reward, compare within groups, learn, push the weights, repeat."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from actors.learner import LearnerGroup
from pipelines.data.build import ensure_dataset
from pipelines.evaluation.evaluate import evaluate_on, evaluate_split
from pipelines.machine.placement import check_placement, grpo_splits
from pipelines.stage.connection import connect
from pipelines.stage.post_mortem import kept_in_folder
from pipelines.stage.progress import QUIET, Load, Progress
from pipelines.stage.tasks import PromptStream
from pipelines.stage.workers import Workers, workers
from pipelines.train.groups import roll_out_groups
from pipelines.train.step_metrics import credit_metrics, rollout_metrics, validation_metrics
from vsr1.config import Config
from vsr1.rl.batch import annealed
from vsr1.rl.credit import credits_of
from vsr1.rl.flops import learner_speed
from vsr1.runs.folder import TRAINING_LOG, write_config
from vsr1.runs.scalars import RunLog
from vsr1.runs.trajectories import LoggedTrajectory, append_trajectories
from vsr1.search.examples import clips_of, trained_examples
from vsr1.settings.training import GrpoConfig


def train(config: Config, progress: Progress = QUIET) -> Path:
    """Run Stage 2 and return the checkpoint folder it wrote; `grpo.save_every` adds `checkpoints/step-N`.

    Raises:
        PlanError: the cluster cannot hold the actors.
        RolloutError: more samples failed than tolerated. Errors of actors come through with their names.
    """
    with kept_in_folder(config, "grpo"):
        connect(config)
        ensure_dataset(config)
        check_placement(config, "grpo")
        return _train(config, progress)


def _train(config: Config, progress: Progress) -> Path:
    run, settings, splits = config.run_dir, config.grpo, grpo_splits(config)
    checkpoints = run / "checkpoints"
    with (
        workers(config, *splits, progress=progress) as others,
        LearnerGroup(config, others.clips["train"], run / "logs") as learners,
        RunLog(run) as log,
    ):
        stream = PromptStream(config)
        counts = {"rollout": len(others.rollouts), "retrieval": len(splits), "rewards": len(others.rewards)}
        progress.begin("grpo", settings.steps, counts | {"learner": learners.ranks})
        _validate(others, log, config, 0)
        for step, done in steps_of(settings):
            started = time.monotonic()
            groups = roll_out_groups(others, stream, config, step, lambda one: learners.prefetch(clips_of(one)))
            rolled = time.monotonic()
            progress.now("learning", learner=Load(learners.ranks))
            credits = credits_of(groups.trained, settings.objective, config.agent.max_new_tokens)
            examples = trained_examples(groups.trained, credits, settings, config.agent)
            rate = settings.learner.learning_rate * annealed(done)
            learned = learners.step(examples, rate) | {"learning_rate": rate}
            stepped = time.monotonic()
            others.push(learners, version=step)
            pushed = time.monotonic()
            timing = {"rollout": rolled - started, "learn": stepped - rolled, "push": pushed - stepped}
            values = rollout_metrics(groups.trained, step - 1) | groups.metrics() | credit_metrics(credits)
            speed = {"tokens_per_second": learned["tokens"] / (pushed - started)}
            log.log("grpo", step, values | learned | speed | {f"seconds/{k}": v for k, v in timing.items()})
            logged = zip(groups.trained, credits, strict=True)
            append_trajectories(run / TRAINING_LOG, [LoggedTrajectory(one, step, turns) for one, turns in logged])
            if step % (settings.save_every or settings.steps + 1) == 0:
                learners.save(checkpoints / f"step-{step}")
            if step % (settings.validate_every or settings.steps + 1) == 0:
                _validate(others, log, config, step)
            timing["rest"] = time.monotonic() - pushed
            shown = {"reward": values["reward/total"], "R@1 after": values["R@1_after"]} | learner_speed(learned)
            progress.step(step, shown, timing)
        learners.save(checkpoints / "grpo")
        learners.close()
        if settings.evaluate_after:
            trained = config.model.model_copy(update={"policy": checkpoints / "grpo"})
            config = config.model_copy(update={"model": trained})  # what the engines hold by now
            write_config(config, "after")
            evaluate_on(others, config, "after")
    return checkpoints / "grpo"


def steps_of(settings: GrpoConfig) -> Iterator[tuple[int, float]]:
    """Numbers of the steps, from 1, and the share of the steps, or of `limit_s`, that is over; none begins after it."""
    began = time.monotonic()
    for step in range(1, settings.steps + 1):
        of_time = (time.monotonic() - began) / settings.limit_s if settings.limit_s else 0.0
        if step > 1 and of_time > 1:
            return
        yield step, min(1.0, max((step - 1) / settings.steps, of_time))


def _validate(others: Workers, log: RunLog, config: Config, step: int) -> None:
    if config.grpo.validate_every:
        split = config.grpo.val_split
        summary, trajectories = evaluate_split(others, config, split, f"step {step} {split}")
        log.log(split, step, validation_metrics(summary, trajectories))
