"""Stage 2, the live loop: roll out, reward, compare within groups, learn, push the weights, repeat."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from actors.learner import LearnerGroup
from pipelines.data.build import ensure_dataset
from pipelines.evaluation.evaluate import evaluate_on, evaluate_split
from pipelines.machine.placement import check_placement, grpo_splits
from pipelines.machine.resources import check_packages
from pipelines.stage.connection import connect
from pipelines.stage.post_mortem import kept_in_folder
from pipelines.stage.progress import QUIET, Load, Progress
from pipelines.stage.tasks import PromptStream, Rows
from pipelines.stage.workers import Workers, workers
from pipelines.train.groups import roll_out_groups
from pipelines.train.prompt_lengths import short_enough
from pipelines.train.record_checks import check_grpo_records
from pipelines.train.step_metrics import credit_metrics, rollout_metrics, validation_metrics
from vsr1.config import Config
from vsr1.episode.sample import hashed_seed
from vsr1.formats.dataset import DatasetFolder
from vsr1.rl.batch import Example
from vsr1.rl.credit import credits_of
from vsr1.rl.flops import learner_speed
from vsr1.rl.schedule import learning_rate, of_all_steps, optimiser_batches
from vsr1.runs.checkpoints import Best, remove_older
from vsr1.runs.folder import TRAINING_LOG, check_untrained, write_config
from vsr1.runs.scalars import RunLog
from vsr1.runs.trajectories import LoggedTrajectory, append_trajectories
from vsr1.search.examples import clips_of, trained_examples
from vsr1.settings.training import GrpoConfig


def train(config: Config, progress: Progress = QUIET) -> Path:
    """Run Stage 2 and return the checkpoint folder it wrote; `grpo.save_every` adds `checkpoints/step-N`.

    Raises:
        PlanError: the cluster cannot hold the actors.
        RunFolderError: `run_dir` holds steps of another run, or another process trains in it.
        RecordError: records that cannot be used.
        RolloutError: more samples failed than tolerated. Errors of actors come through with their names.
    """
    check(config)
    with kept_in_folder(config, "grpo"):
        if config.tracking.wandb:
            check_packages("wandb", fix="pip install 'vsr1[wandb]', or leave tracking.wandb out")
        connect(config)
        ensure_dataset(config)
        check_grpo_records(config)
        check_placement(config, "grpo")
        return _train(config, progress)


def check(config: Config) -> None:
    """See that a run can start, as far as dataset and run folder tell by themselves; errors as of `train`."""
    check_untrained(config, "grpo")
    if DatasetFolder(config.data.root).grpo_records().is_file():
        check_grpo_records(config)


def _train(config: Config, progress: Progress) -> Path:
    run, settings, splits = config.run_dir, config.grpo, grpo_splits(config)
    checkpoints = run / "checkpoints"
    stream = PromptStream(config, choose=partial(_short_enough, config))
    with (
        workers(config, *splits, progress=progress) as others,
        others.learners(config, "train") as learners,
        RunLog(run, wandb=config.tracking.wandb) as log,
    ):
        counts = {"rollout": len(others.fleet.members), "retrieval": len(splits), "rewards": len(others.rewards)}
        progress.begin("grpo", settings.steps, counts | {"learner": learners.ranks})
        best = Best(checkpoints / "grpo-best", learners.save)
        if settings.validate_every:
            _validate(others, log, config, 0)
        version = 0  # of the weights that the engines hold
        for step, over in steps_of(settings):
            started = time.monotonic()
            groups = roll_out_groups(others, stream, config, step, lambda one: learners.prefetch(clips_of(one)))
            rolled = time.monotonic()
            credits = credits_of(groups.trained, settings.objective, config.agent.max_new_tokens)
            examples = trained_examples(groups.trained, credits, settings, config.agent)
            progress.now("learning", learner=Load(learners.ranks))
            learned = learn(learners, examples, config, step, over)
            stepped = time.monotonic()
            values = rollout_metrics(groups.trained, version) | groups.metrics() | credit_metrics(credits) | learned
            timing = {"rollout": rolled - started, "learn": stepped - rolled}
            if not learned["skipped"]:
                others.push(learners, version=step)
                version = step
                timing["push"] = time.monotonic() - stepped
                values["tokens_per_second"] = learned["tokens"] / (time.monotonic() - started)
            worked = time.monotonic()
            log.log("grpo", step, values | {f"seconds/{name}": seconds for name, seconds in timing.items()})
            logged = zip(groups.trained, credits, strict=True)
            append_trajectories(run / TRAINING_LOG, [LoggedTrajectory(one, step, turns) for one, turns in logged])
            if step % (settings.save_every or settings.steps + 1) == 0:
                learners.save(checkpoints / f"step-{step}")
                remove_older(checkpoints, settings.save_total_limit)
            if step % (settings.validate_every or settings.steps + 1) == 0:
                reward = _validate(others, log, config, step)
                if settings.keep_best:
                    best.offer(step, reward)
            timing["rest"] = time.monotonic() - worked
            shown = {"reward": values["reward/total"], "R@1 after": values["R@1_after"]} | learner_speed(learned)
            progress.step(step, shown | ({"skipped": 1.0} if learned["skipped"] else {}), timing)
        learners.save(checkpoints / "grpo")
        learners.close()
        if settings.evaluate_after:
            trained = config.model.model_copy(update={"policy": checkpoints / "grpo"})
            config = config.model_copy(update={"model": trained})  # what the engines hold by now
            write_config(config, "after")
            evaluate_on(others, config, "after")
    return checkpoints / "grpo"


def learn(learners: LearnerGroup, examples: list[Example], config: Config, step: int, over: float) -> dict[str, float]:
    """Take the optimiser steps on the examples of a step and return what they count, see `of_all_steps`.

    Where there is not an example for each rank none is taken, and `skipped` is 1. From the second one on the policy is
    not the one that the ratio is taken against, whose log-probs are kept then, unless the ratio takes the engine's.

    Args:
        over: share of the training that is over.
    """
    if len(examples) < learners.ranks:
        return {"skipped": 1.0}
    settings, seed = config.grpo, hashed_seed(config.seed, "order of examples", step)
    rate = learning_rate(settings.learner, step, over)
    batches = optimiser_batches(examples, settings.minibatches, settings.epochs, learners.ranks, seed)
    if len(batches) > 1 and settings.objective.mismatch != "ratio":
        for example, logprobs in zip(examples, learners.logprobs(examples), strict=True):
            assert example.sampled is not None
            example.sampled.old = logprobs
    learned = of_all_steps([learners.step(batch, rate) for batch in batches])
    return learned | {"learning_rate": rate, "skipped": 0.0}


def _short_enough(config: Config, rows: Rows) -> Rows:
    def shown(row: dict[str, Any]) -> list[str]:
        recorded = row["is_augmented"] or config.grpo.first_video == "recorded"
        return [row["gt_video"], *([row["retrieved_video"]] if recorded else [])]

    return short_enough(rows, config, config.grpo.max_prompt_tokens, shown, "grpo.max_prompt_tokens")


def steps_of(settings: GrpoConfig) -> Iterator[tuple[int, float]]:
    """Yield each step's number, from 1, and the share of the steps, or of `limit_s`, that is over before it."""
    began = time.monotonic()
    for step in range(1, settings.steps + 1):
        of_time = (time.monotonic() - began) / settings.limit_s if settings.limit_s else 0.0
        if step > 1 and of_time > 1:
            return
        yield step, min(1.0, max((step - 1) / settings.steps, of_time))


def _validate(others: Workers, log: RunLog, config: Config, step: int) -> float:
    """Play the validation split, log its metrics and return its reward."""
    split = config.grpo.val_split
    summary, trajectories = evaluate_split(others, config, split, f"step {step} {split}")
    values = validation_metrics(summary, trajectories)
    log.log(split, step, values)
    return values["reward"]
