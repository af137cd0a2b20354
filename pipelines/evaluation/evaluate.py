"""Evaluation: the agent, greedy, over every query of a split, on the same rollout workers that training uses.

All queries are in flight at once and no turn waits for another query. Every query of the annotations has a row in the
result; one that could not be played counts as a failure. A trajectory is logged as soon as it is scored, under the
fingerprint of everything that it depends on: an evaluation that was stopped goes on from there, and one with any other
setting, weights or data begins anew.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from actors.rollout import Sampling
from pipelines.data.build import ensure_dataset
from pipelines.machine.placement import check_placement
from pipelines.stage.connection import connect
from pipelines.stage.plays import Outcome
from pipelines.stage.post_mortem import kept_in_folder
from pipelines.stage.progress import QUIET, Progress
from pipelines.stage.workers import Workers, workers
from vsr1 import __version__
from vsr1.config import Config
from vsr1.environments.registry import environment_of
from vsr1.environments.spec import Evaluated, fingerprint_of
from vsr1.episode.sample import FailedSample
from vsr1.episode.trajectory import Trajectory
from vsr1.formats.atomic import write_json, write_lines
from vsr1.formats.dataset import DatasetFolder
from vsr1.formats.digest import file_sha256, weights_fingerprint
from vsr1.navigate.files import questions_file
from vsr1.retrieval.corpus import CURRENT
from vsr1.runs.folder import EVALUATION_LOG
from vsr1.runs.trajectories import LoggedTrajectory, append_trajectories, read_log, write_trajectories
from vsr1.search.prompts import agent_prompt
from vsr1.search.record import SearchTask, SearchTrajectory
from vsr1.settings.parts import AgentConfig
from vsr1.storage import fetched
from vsr1.versions import installed_version
from vsr1.video.clips import META
from vsr1.video.largest_clip import check_largest_clip

STACK = ("torch", "transformers", "vllm", "faiss")  # packages whose versions change numbers


class EvaluationError(RuntimeError):
    """More queries failed than `eval.max_failed_fraction` tolerates; the message says how many and shows the first."""


class Evaluation:
    """One agent over one split: what is to be played, and what became of it.

    Args:
        settings: everything that a trajectory depends on.
    """

    def __init__(self, config: Config, label: str, split: str, agent: AgentConfig, settings: dict[str, Any]) -> None:
        self.label, self.agent, self.settings = label, agent, settings
        self._config, self._split, self._environment = config, split, environment_of(config)
        self.fingerprint = fingerprint_of(settings)
        self.log = config.run_dir / f"{label}{EVALUATION_LOG}"
        self.queries = self._environment.evaluation_queries(config, split)
        skipped = (FailedSample(q.task.id, q.skipped, q.message) for q in self.queries if q.skipped)
        self.outcomes: dict[str, Outcome] = {outcome.id.prompt: outcome for outcome in skipped}

    @property
    def waiting(self) -> list[SearchTask]:
        """Return the queries that are still to be played."""
        return [query.task for query in self.queries if query.task.id.prompt not in self.outcomes]

    @property
    def trajectories(self) -> list[SearchTrajectory]:
        """Return what was played, in the order of the annotations."""
        outcomes = (self.outcomes.get(query.task.id.prompt) for query in self.queries)
        return [outcome for outcome in outcomes if isinstance(outcome, Trajectory)]

    def resume(self) -> None:
        """Take from the log what an earlier run of the very same evaluation has played."""
        prompts = {task.id.prompt for task in self.waiting}
        for logged in read_log(self.log) if self.log.is_file() else ():
            if logged.fingerprint == self.fingerprint and logged.trajectory.id.prompt in prompts:
                self.outcomes[logged.trajectory.id.prompt] = logged.trajectory

    def play(self, others: Workers, sampling: Sampling) -> Iterator[Outcome]:
        """Play what is waiting; yield scored outcomes in the order in which they come."""
        for outcome in others.play(self._split, self.waiting, self.agent, sampling, f"{self.label} queries"):
            self.outcomes[outcome.id.prompt] = outcome
            yield outcome

    def logged(self, trajectories: list[SearchTrajectory]) -> list[LoggedTrajectory]:
        """Return trajectories as the log has them."""
        return [LoggedTrajectory(trajectory, fingerprint=self.fingerprint) for trajectory in trajectories]

    def scored(self) -> tuple[list[Any], Any]:
        """Return the rows in the order of the annotations, and their summary, both as the environment has them."""
        evaluated = Evaluated(self.queries, self.outcomes, self._split, self.agent, self.fingerprint)
        rows, summary = self._environment.scored(self._config, evaluated)
        return rows, summary.model_copy(update={"settings": self.settings})


def evaluate(config: Config, progress: Progress = QUIET, *, name: str = "eval") -> tuple[Any, list[SearchTrajectory]]:
    """Run every query of `eval.split` with `agent`, then with each of `eval.agents`; return the first's result.

    The summary is an `EvalSummary`, of navigation a `NavigateSummary`, with a play of each question for each budget.

    Writes to `run_dir`, for the first as `<name>` and for the others as `<name>-<agent>`: `.json` (the summary),
    `.published.json` (the published evaluator's), `.jsonl` (a row a query) and `.trajectories.jsonl`.

    Raises:
        EvaluationError: too many queries failed; everything is written all the same.
    """
    check_largest_clip(config.model.policy, config.data)
    with kept_in_folder(config, name):
        connect(config)
        ensure_dataset(config)
        evaluations = _planned(config, name)
        if not any(evaluation.waiting for evaluation in evaluations):
            return _finished(config, evaluations, None)
        check_placement(config, "eval")
        with workers(config, config.eval.split, progress=progress) as others:
            return _finished(config, evaluations, others)


def evaluate_on(others: Workers, config: Config, name: str) -> tuple[Any, list[SearchTrajectory]]:
    """Run as `evaluate` does, on running workers whose engines hold the weights of `model.policy`."""
    return _finished(config, _planned(config, name), others)


def evaluate_split(others: Workers, config: Config, split: str, name: str) -> tuple[Any, list[SearchTrajectory]]:
    """Run every query of a split with the weights that the engines hold now; nothing is written, failures count."""
    evaluation = Evaluation(config, name, split, config.agent, {})
    list(evaluation.play(others, Sampling(config.retrieval.top_k)))
    return evaluation.scored()[1], evaluation.trajectories


def agents_of(config: Config) -> dict[str, AgentConfig]:
    """Return the agents that are evaluated by name: `agent` as "", then `eval.agents`."""
    changes = {"": {}, **config.eval.agents}
    return {name: AgentConfig.model_validate(config.agent.model_dump() | values) for name, values in changes.items()}


def _planned(config: Config, name: str) -> list[Evaluation]:
    """Return the evaluations of all agents, each with what an earlier run has left."""
    split, inputs = config.eval.split, _inputs(config, config.eval.split)
    evaluations = []
    for agent_name, agent in agents_of(config).items():
        settings: dict[str, Any] = {"agent": agent.model_dump(mode="json", exclude={"system_prompt"})}
        settings |= {"system_prompt": agent_prompt(agent), **inputs}
        label = f"{name}-{agent_name}" if agent_name else name
        evaluations.append(Evaluation(config, label, split, agent, settings))
        evaluations[-1].resume()
    return evaluations


def _inputs(config: Config, split: str) -> dict[str, Any]:
    """Return what all agents of an evaluation share: weights, data, settings that change what is sampled or scored."""
    folder = DatasetFolder(config.data.root)
    files = [
        folder.annotations(split), folder.query_meta(split), folder.docid2row(split), folder.video_embeddings(split),
        folder.at(split, "index", CURRENT), fetched(folder.clips(split) / META), questions_file(folder, split),
    ]  # fmt: skip
    model = config.model
    return environment_of(config).settings(config, False) | {
        "split": split,
        "seed": config.seed,
        "policy": weights_fingerprint(model.policy),
        "embedder": weights_fingerprint(model.embedder),
        "data": file_sha256(*[path for path in files if path.is_file()])[:16],
        "timestamps": config.data.timestamps,
        "engine": config.rollout.engine.model_dump(mode="json") | {"device": model.device, "dtype": model.dtype},
        "retrieval": config.retrieval.model_dump(mode="json", include={"index", "index_params"}),
        "top_k": config.eval.top_k,
        "rank_by_depth": config.eval.rank_by_depth,
        "rewards": config.rewards.model_dump(mode="json"),
        "versions": {"vsr1": __version__} | {name: installed_version(name) for name in STACK},
    }


def _finished(
    config: Config, evaluations: list[Evaluation], others: Workers | None
) -> tuple[Any, list[SearchTrajectory]]:
    """Play what is waiting, write the results and return those of the first evaluation."""
    sampling, environment = Sampling(config.eval.top_k, rank_by_depth=config.eval.rank_by_depth), environment_of(config)
    if others is not None:
        counts = {"rollout": len(others.fleet.members), "retrieval": 1, "rewards": len(others.rewards)}
        others.progress.begin(evaluations[0].label, len(evaluations), counts)
    summaries, faults = [], []
    for number, evaluation in enumerate(evaluations, start=1):
        began = time.monotonic()
        write_trajectories(evaluation.log, evaluation.logged(evaluation.trajectories))  # without other settings' lines
        for outcome in evaluation.play(others, sampling) if others is not None else ():
            if isinstance(outcome, Trajectory):
                append_trajectories(evaluation.log, evaluation.logged([outcome]))
        rows, summary = evaluation.scored()
        file = config.run_dir / f"{evaluation.label}.json"
        write_trajectories(evaluation.log, evaluation.logged(evaluation.trajectories))
        write_lines(file.with_suffix(".jsonl"), [row.model_dump(mode="json") for row in rows])
        write_json(file, summary.to_json())
        for ending, value in environment.exports(rows).items():
            write_json(file.with_suffix(ending), value)
        summaries.append(summary)
        if others is not None:
            others.progress.step(number, environment.figures(summary), {"evaluate": time.monotonic() - began})
        failed = [row for row in rows if row.status == "failed"]
        if len(failed) > config.eval.max_failed_fraction * len(rows):
            faults.append(
                f"{len(failed)} of {len(rows)} queries failed and count as failures in {file}; the first, "
                f"{failed[0].qid!r}: {failed[0].reason}: {failed[0].message}. The same command tries them again; "
                "eval.max_failed_fraction tolerates some"
            )
    if faults:
        raise EvaluationError(faults[0])
    return summaries[0], evaluations[0].trajectories
