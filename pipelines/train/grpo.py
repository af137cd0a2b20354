"""Stage 2, the live loop: roll out, reward, compare within groups, learn, push the weights, repeat."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from actors.learner import LearnerGroup
from pipelines.data.build import ensure_dataset
from pipelines.evaluation.evaluate import evaluate_on, evaluate_split
from pipelines.machine.placement import check_placement, grpo_splits
from pipelines.machine.resources import check_packages
from pipelines.stage.connection import connect
from pipelines.stage.post_mortem import kept_in_folder
from pipelines.stage.progress import QUIET, Load, Progress
from pipelines.stage.tasks import PromptStream
from pipelines.stage.workers import Workers, workers
from pipelines.train.commits import Commits, Saved
from pipelines.train.environments import training_of
from pipelines.train.gauges import StepGauges
from pipelines.train.groups import StepGroups
from pipelines.train.prompt_lengths import short_enough
from pipelines.train.record_checks import check_checkpoints
from pipelines.train.rollouts import GroupRollouts
from pipelines.train.step_metrics import credit_metrics
from vsr1.config import RENAMED, Config
from vsr1.environments.registry import environment_of
from vsr1.environments.spec import Rows
from vsr1.episode.sample import hashed_seed
from vsr1.formats.digest import file_sha256
from vsr1.ledger import Ledger
from vsr1.rl.batch import Example
from vsr1.rl.credit import Credit, credits_of
from vsr1.rl.flops import learner_speed
from vsr1.rl.schedule import learning_rate, of_all_steps, optimiser_batches
from vsr1.runs.checkpoints import Best, remove_older
from vsr1.runs.events import EVENTS, EventLog
from vsr1.runs.folder import TRAINING_LOG, check_untrained, write_config
from vsr1.runs.mirror import bring
from vsr1.runs.scalars import RunLog
from vsr1.runs.state import StateFolder
from vsr1.runs.trajectories import LoggedTrajectory, append_trajectories
from vsr1.search.examples import clips_of
from vsr1.search.prompts import agent_prompt
from vsr1.settings.training import GrpoConfig
from vsr1.video.largest_clip import check_largest_clip

DEFAULTS = {"grpo": GrpoConfig().model_dump(mode="json")}  # for states of before a setting was there
UNDECIDED = (  # change no step
    "state_every", "state_limit", "save_every", "save_total_limit", "keep_best", "validate_every", "val_split",
    "evaluate_before", "evaluate_after", "max_failed_fraction", "poison_deaths",
)  # fmt: skip
SPEED = {"compile", "vision_cache_gib", "micro_tokens"}  # of the learner: how fast a step is, not what it does
P = ParamSpec("P")
Result = TypeVar("Result")


def train(config: Config, progress: Progress = QUIET) -> Path:
    """Run Stage 2 and return the checkpoint folder it wrote; `grpo.save_every` adds `checkpoints/step-N`.

    A run that was stopped goes on from its last state in `run_dir/state/grpo`, and with the rollouts in its journal
    (`pipelines.train.commits`); so it may have another number of rollout workers, and of learner ranks unless they
    share weights (ZeRO-3). All ranks must see `run_dir`.

    Raises:
        PlanError: the cluster cannot hold the actors.
        RunFolderError: `run_dir` holds steps of a run that left no state, or another process trains in it.
        StateError: `run_dir` holds a run of other settings.
        RecordError: records that cannot be used.
        RolloutError: more samples failed than tolerated. Errors of actors come through with their names.
    """
    bring(config.run_dir, "grpo")
    check(config)
    with kept_in_folder(config, "grpo"):
        if config.tracking.wandb:
            check_packages("wandb", fix="pip install 'vsr1[wandb]', or leave tracking.wandb out")
        connect(config)
        if ensure_dataset(config):
            training_of(config).check(config)
        check_placement(config, "grpo")
        return _train(config, progress)


def check(config: Config) -> None:
    """See that a run can start, as far as dataset and run folder tell by themselves; errors as of `train`."""
    check_checkpoints(config)
    check_largest_clip(config.model.policy, config.data)
    states, has_records = _states(config), environment_of(config).training_file(config).is_file()
    if not states.root.exists():
        check_untrained(config, "grpo")
    elif has_records:
        states.claim(_settings(config), RENAMED, DEFAULTS)
    if has_records or not config.toy.create:
        training_of(config).check(config)


def _train(config: Config, progress: Progress) -> Path:
    run, settings, splits = config.run_dir, config.grpo, grpo_splits(config)
    checkpoint, events = run / "checkpoints" / "grpo", EventLog(run / EVENTS)
    with (
        begun(config, _states(config), _settings(config), events) as (commits, saved, log),
        workers(config, *splits, progress=progress, wait=False) as others,
        others.learners(config, "train") as learners,
    ):
        counts = {"rollout": len(others.fleet.members), "retrieval": len(splits), "rewards": len(others.rewards)}
        begin = partial(progress.begin, "grpo", settings.steps, counts | {"learner": learners.ranks})
        begin()
        if saved.folder:
            learners.load_state(saved.folder)
            others.push(learners, version=saved.weights)
        else:
            if settings.evaluate_before:
                _evaluate(others, config, "before")
                begin()
            if settings.validate_every:
                _validate(others, log, config, 0)
        stream = PromptStream(config, saved.position, partial(_short_enough, config), saved.success)
        ledger = Ledger(commits.write, saved.past, settings.poison_deaths)
        rollouts = GroupRollouts(
            others, stream, ledger, config, saved, events, lambda one: learners.prefetch(clips_of(one))
        )
        show = StepGauges(run.name).show
        Loop(config, others, learners, rollouts, commits, log, events, progress, show).run(saved)
        learners.save(checkpoint)
        learners.close()
        if settings.evaluate_after:
            trained = config.model.model_copy(update={"policy": checkpoint})
            _evaluate(others, config.model_copy(update={"model": trained}), "after")
    return checkpoint


@contextmanager
def begun(
    config: Config, states: StateFolder, settings: dict[str, Any], events: EventLog
) -> Iterator[tuple[Commits, Saved, RunLog]]:
    """Yield what a run commits, where it goes on from, and its log without the steps that it takes again."""
    with Commits(config.run_dir, states, settings, events) as commits:
        saved = commits.restore(DEFAULTS)
        after = dict.fromkeys(("grpo", config.grpo.val_split), saved.step if saved.folder else -1)
        with RunLog(config.run_dir, wandb=config.tracking.wandb, after=after) as log:
            yield commits, saved, log


@dataclass
class _Taken:
    """A step that the learner takes: its groups with their credits, and the seconds of its parts."""

    step: int
    groups: StepGroups
    credits: list[list[Credit]]
    learning: Future[dict[str, float]]
    started: float
    seconds: dict[str, float]


@dataclass
class Loop:
    """The steps of a run: take groups, learn them, push the weights, and note what became of it."""

    config: Config
    others: Workers
    learners: LearnerGroup
    rollouts: GroupRollouts
    commits: Commits
    log: RunLog
    events: EventLog
    progress: Progress
    show: Callable[[int, dict[str, float]], None] = lambda step, values: None

    def run(self, saved: Saved) -> None:
        """Take the steps after a saved one; before Ctrl-C or SIGTERM goes on, the last one is saved."""
        settings = self.config.grpo
        self._began = time.monotonic() - saved.elapsed_s
        self._best = Best(self.config.run_dir / "checkpoints" / "grpo-best", self.learners.save)
        self._whole: Saved | None = saved  # the step that the learner has taken, None while it takes one
        self._taken: _Taken | None = None  # the step that the learner takes, or has taken
        self._seen = saved.index_versions  # by the step before
        self._thread = ThreadPoolExecutor(1, "learner")
        try:
            for step, over in steps_of(settings, saved.step, saved.elapsed_s):
                self._step(step, over)
        except KeyboardInterrupt:
            self._thread.submit(int).result()  # what it does is over
            if self._taken and self._taken.learning.done() and self._taken.learning.exception() is None:
                self._note(self._taken)
            if self._whole and self._whole.step > self.commits.step:
                self.commits.prepare(self._whole, self.rollouts.snapshot())(self.learners.save_state)
            raise
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    def _step(self, step: int, over: float) -> None:
        started = time.monotonic()
        groups = self.rollouts.take(step)
        rolled, self._whole = time.monotonic(), None
        credits = credits_of(groups.trained, self.config.grpo.objective, self.config.agent.max_new_tokens)
        examples = training_of(self.config).examples(groups.trained, credits, self.config)
        self.progress.now("learning", learner=Load(self.learners.ranks))
        learning = self._thread.submit(learn, self.learners, examples, self.config, step, over)
        self._taken = taken = _Taken(step, groups, credits, learning, started, {"rollout": rolled - started})
        learned = self.rollouts.during(learning)
        stepped = time.monotonic()
        taken.seconds["learn"] = stepped - rolled
        if not learned["skipped"]:
            self.others.push(self.learners, version=step)
            taken.seconds["push"] = time.monotonic() - stepped
        worked = time.monotonic()
        values = self._note(taken)
        self._keep(step)
        shown = {"reward": values["reward/total"]}
        shown |= {name: values[key] for name, key in training_of(self.config).shown.items()} | learner_speed(learned)
        if self.config.grpo.staleness:
            shown["staleness"] = values["staleness/most"]
        timing = taken.seconds | {"rest": time.monotonic() - worked}
        self.progress.step(step, shown | ({"skipped": 1.0} if learned["skipped"] else {}), timing)

    def _note(self, taken: _Taken) -> dict[str, float]:
        """Write down a step that the learner has taken, which is whole then; return what was logged."""
        self._taken = None
        step, groups, learned = taken.step, taken.groups, taken.learning.result()
        held = self.rollouts.weights
        values = training_of(self.config).metrics(groups.trained, held) | groups.metrics()
        values |= credit_metrics(taken.credits) | learned
        if not learned["skipped"]:
            values["tokens_per_second"] = learned["tokens"] / (time.monotonic() - taken.started)
        # A run that goes on pushes the weights of the step first, whether these engines got them or not.
        self.rollouts.learned(groups, step, held if learned["skipped"] else step)
        values |= self.rollouts.metrics() | {f"seconds/{name}": seconds for name, seconds in taken.seconds.items()}
        self.log.log("grpo", step, values)
        self.show(step, values)
        logged = zip(groups.trained, taken.credits, strict=True)
        path = self.config.run_dir / TRAINING_LOG
        append_trajectories(path, [LoggedTrajectory(one, step, turns) for one, turns in logged])
        self.commits.begin()
        before, self._whole = self._seen, self.rollouts.saved(groups, time.monotonic() - self._began)
        self._seen = self._whole.index_versions
        if before and before != self._seen:
            self.events.write("corpus changed", step=step, before=before, now=self._seen)
        return values

    def _keep(self, step: int) -> None:
        """Save the state, write the checkpoint and validate, where a step is one for it."""
        settings, checkpoints = self.config.grpo, self.config.run_dir / "checkpoints"
        if self._whole and (step % settings.state_every == 0 or step == settings.steps):
            self._save_state(self._whole)
        if step % (settings.save_every or settings.steps + 1) == 0:
            self._meanwhile(self.learners.save, checkpoints / f"step-{step}")
            remove_older(checkpoints, settings.save_total_limit)
        if step % (settings.validate_every or settings.steps + 1) == 0:
            reward = _validate(self.others, self.log, self.config, step)
            if settings.keep_best:
                self._best.offer(step, reward)

    def _save_state(self, saved: Saved) -> None:
        self._meanwhile(self.commits.prepare(saved, self.rollouts.snapshot()), self.learners.save_state)

    def _meanwhile(self, work: Callable[P, Result], *args: P.args, **words: P.kwargs) -> Result:
        """Do a work of the learner in its thread, and go on playing until it ends."""
        return self.rollouts.during(self._thread.submit(work, *args, **words))


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


def _states(config: Config) -> StateFolder:
    root = config.run_dir / "state" / "grpo"
    return StateFolder(root, config.grpo.state_limit, free=["grpo.learner.ranks"])  # the learner cuts its state anew


def _settings(config: Config) -> dict[str, Any]:
    """Return all that decides what a step does, as a JSON value; a state is continued under the same only."""
    agent, records = config.agent, environment_of(config).training_file(config)
    return environment_of(config).settings(config, True) | {
        "seed": config.seed,
        "model": config.model.model_dump(mode="json"),
        "data": {"timestamps": config.data.timestamps},
        "agent": agent.model_dump(mode="json") | {"system_prompt": agent_prompt(agent)},
        "grpo": config.grpo.model_dump(mode="json", exclude=dict.fromkeys(UNDECIDED, True) | {"learner": SPEED}),
        "rewards": config.rewards.model_dump(mode="json"),
        "rollout": config.rollout.model_dump(mode="json", include={"temperature", "top_p", "top_k"}),
        "retrieval": config.retrieval.model_dump(mode="json", include={"index", "index_params", "top_k"}),
        "training records (sha256)": file_sha256(records) if records.is_file() else "",
    }


def _short_enough(config: Config, rows: Rows) -> Rows:
    def shown(row: dict[str, Any]) -> list[str]:
        recorded = row["is_augmented"] or config.grpo.first_video == "recorded"
        return [row["gt_video"], *([row["retrieved_video"]] if recorded else [])]

    return short_enough(rows, config, config.grpo.max_prompt_tokens, shown, "grpo.max_prompt_tokens")


def steps_of(settings: GrpoConfig, taken: int = 0, elapsed_s: float = 0.0) -> Iterator[tuple[int, float]]:
    """Yield each step's number and the share of the steps, or of `limit_s`, that is over before it.

    Args:
        taken: steps of the run that goes on, and the seconds that they took.
    """
    began = time.monotonic() - elapsed_s
    for step in range(taken + 1, settings.steps + 1):
        of_time = (time.monotonic() - began) / settings.limit_s if settings.limit_s else 0.0
        if step > 1 and of_time > 1:
            return
        yield step, min(1.0, max((step - 1) / settings.steps, of_time))


def _evaluate(others: Workers, config: Config, name: str) -> None:
    """Evaluate `eval.split` with the weights that the engines hold, those of `model.policy`."""
    write_config(config, name)
    evaluate_on(others, config, name)


def _validate(others: Workers, log: RunLog, config: Config, step: int) -> float:
    """Play the validation split, log its metrics and return its reward."""
    split = config.grpo.val_split
    summary, trajectories = evaluate_split(others, config, split, f"step {step} {split}")
    values = training_of(config).validation(summary, trajectories)
    log.log(split, step, values)
    return values["reward"]
