"""Evaluation: the agent, greedy, over every query of a split, on the same rollout workers that training uses.

All queries are in flight at once and no turn waits for another query. Every query of the annotations has a row in the
result; one that could not be played counts as a failure. A trajectory is kept as soon as it is played, under the
fingerprint of everything that it depends on: an evaluation that was stopped goes on from there, and one with any other
setting, weights or data begins anew.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.rollout import Sampling
from pipelines.data.build import ensure_dataset
from pipelines.machine.probes import SUPPORTED, installed_version
from pipelines.stage.post_mortem import kept_in_folder
from pipelines.stage.progress import QUIET, Progress
from pipelines.stage.tasks import EvaluationQuery, evaluation_queries
from pipelines.stage.workers import Outcome, Services, connect, services
from vsr1 import __version__
from vsr1.config import Config
from vsr1.episode.trajectory import FailedSample, Trajectory
from vsr1.formats.atomic import write_json, write_lines
from vsr1.formats.dataset import DatasetFolder
from vsr1.formats.digest import file_sha256, value_sha256, weights_fingerprint
from vsr1.metrics.prediction_rows import failed_row, prediction_row
from vsr1.metrics.predictions import PredictionRow
from vsr1.metrics.published import published_summary
from vsr1.metrics.summary import EvalSummary, summarise
from vsr1.retrieval.corpus import CURRENT
from vsr1.runs.folder import EVALUATION_LOG
from vsr1.runs.trajectories import LoggedTrajectory, append_trajectories, read_log
from vsr1.search.prompts import agent_prompt
from vsr1.settings.parts import AgentConfig
from vsr1.video.clips import META, read_meta

STACK = ("torch", "transformers", "vllm", "faiss")  # packages whose versions change numbers


class EvaluationError(RuntimeError):
    """More queries failed than `eval.max_failed_fraction` tolerates; the message says how many and shows the first."""


@dataclass
class Evaluation:
    """One agent over one split, and what an earlier run of the very same evaluation has played."""

    label: str
    split: str
    agent: AgentConfig
    queries: list[EvaluationQuery]
    settings: dict[str, Any]  # everything that a trajectory depends on
    outcomes: dict[str, Outcome]  # by query id

    @property
    def fingerprint(self) -> str:
        return value_sha256(self.settings)[:16]

    @property
    def waiting(self) -> list[EvaluationQuery]:
        return [query for query in self.queries if query.task.query_id not in self.outcomes]


def evaluate(config: Config, progress: Progress = QUIET, *, name: str = "eval") -> tuple[EvalSummary, list[Trajectory]]:
    """Run every query of `eval.split` with `agent`, then with each of `eval.agents`; the result is the first's.

    Writes to `run_dir`, for the first as `<name>` and for the others as `<name>-<agent>`: `.json` (the summary),
    `.published.json` (the published evaluator's), `.jsonl` (a row a query) and `.trajectories.jsonl`.

    Raises:
        EvaluationError: too many queries failed; everything is written all the same.
    """
    with kept_in_folder(config, name):
        connect(config)
        ensure_dataset(config)
        evaluations = planned(config, config.eval.split, name)
        if not any(evaluation.waiting for evaluation in evaluations):
            return _finished(None, config, evaluations)
        with services(config, config.eval.split, progress=progress) as world:
            return _begun(world, config, name, evaluations)


def evaluate_on(world: Services, config: Config, name: str) -> tuple[EvalSummary, list[Trajectory]]:
    """As `evaluate`, on running services whose engines hold the weights of `model.policy`."""
    return _begun(world, config, name, planned(config, config.eval.split, name))


def _begun(
    world: Services, config: Config, name: str, evaluations: list[Evaluation]
) -> tuple[EvalSummary, list[Trajectory]]:
    workers = {"rollout": len(world.rollouts), "retrieval": 1, "rewards": len(world.rewards)}
    world.progress.begin(name, len(evaluations), workers)
    return _finished(world, config, evaluations)


def evaluate_split(world: Services, config: Config, split: str, name: str) -> tuple[EvalSummary, list[Trajectory]]:
    """Run every query of a split with the weights that the engines hold now; nothing is written, failures count."""
    queries = evaluation_queries(config, split)
    evaluation = Evaluation(name, split, config.agent, queries, {}, _skipped(queries))
    for outcome in _played(world, evaluation, Sampling(config.retrieval.top_k)):
        evaluation.outcomes[outcome.query_id] = outcome
    return _summary(config, evaluation)[1:]


def planned(config: Config, split: str, name: str) -> list[Evaluation]:
    """`agent`, then `eval.agents`, each with what an earlier run has left."""
    queries = evaluation_queries(config, split)
    inputs = _inputs(config, split)
    evaluations = []
    for agent_name, changes in {"": {}, **config.eval.agents}.items():
        agent = AgentConfig.model_validate(config.agent.model_dump() | changes)
        settings = {
            "agent": agent.model_dump(mode="json", exclude={"system_prompt"}),
            "system_prompt": agent_prompt(agent),
            **inputs,
        }
        label = f"{name}-{agent_name}" if agent_name else name
        evaluation = Evaluation(label, split, agent, queries, settings, _skipped(queries))
        wanted = {query.task.query_id for query in queries}
        log = _trajectories(config, evaluation)
        for logged in read_log(log) if log.is_file() else ():
            if logged.fingerprint == evaluation.fingerprint and logged.trajectory.query_id in wanted:
                evaluation.outcomes[logged.trajectory.query_id] = logged.trajectory
        evaluations.append(evaluation)
    return evaluations


def _skipped(queries: list[EvaluationQuery]) -> dict[str, Outcome]:
    return {q.task.query_id: FailedSample(q.task.query_id, 0, q.skipped, q.message) for q in queries if q.skipped}


def _inputs(config: Config, split: str) -> dict[str, Any]:
    """What all agents of an evaluation share: weights, data, and settings that change what is sampled or scored."""
    folder = DatasetFolder(config.data.root)
    files = [
        folder.annotations(split), folder.query_meta(split), folder.docid2row(split), folder.video_embeddings(split),
        folder.index(split).parent / CURRENT, folder.clips(split) / META,
    ]  # fmt: skip
    model = config.model
    return {
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
        "versions": {"vsr1": __version__} | {name: installed_version(SUPPORTED[name][0]) for name in STACK},
    }


def _finished(
    world: Services | None, config: Config, evaluations: list[Evaluation]
) -> tuple[EvalSummary, list[Trajectory]]:
    """Play what is waiting and write the results."""
    results, failed = [], []
    for number, evaluation in enumerate(evaluations, start=1):
        began = time.monotonic()
        log = _trajectories(config, evaluation)
        write_lines(log, _log_rows(evaluation))  # without rows of other settings and a last line that was cut off
        if world is not None:
            sampling = Sampling(config.eval.top_k, rank_by_depth=config.eval.rank_by_depth)
            for outcome in _played(world, evaluation, sampling):
                evaluation.outcomes[outcome.query_id] = outcome
                if isinstance(outcome, Trajectory):
                    append_trajectories(log, [LoggedTrajectory(outcome, fingerprint=evaluation.fingerprint)])
        rows, summary, trajectories = _summary(config, evaluation)
        write_lines(log, _log_rows(evaluation))
        write_lines(log.with_name(f"{evaluation.label}.jsonl"), [row.model_dump(mode="json") for row in rows])
        write_json(log.with_name(f"{evaluation.label}.json"), summary.to_json())
        write_json(log.with_name(f"{evaluation.label}.published.json"), published_summary(rows))
        results.append((summary, trajectories))
        if world is not None:
            values = {"R@1 after": summary.refined.recall_at_1, "IoU@0.5": summary.moments.iou_05}
            world.progress.step(number, values, {"evaluate": time.monotonic() - began})
        failed.append([row for row in rows if row.status == "failed"])
    for evaluation, rows in zip(evaluations, failed, strict=True):
        if len(rows) > config.eval.max_failed_fraction * len(evaluation.queries):
            first, where = rows[0], config.run_dir / f"{evaluation.label}.json"
            raise EvaluationError(
                f"{len(rows)} of {len(evaluation.queries)} queries failed and count as failures in {where}; the first, "
                f"{first.qid!r}: {first.reason}: {first.message}. The same command tries them again; "
                "eval.max_failed_fraction tolerates some"
            )
    return results[0]


def _played(world: Services, evaluation: Evaluation, sampling: Sampling) -> Iterator[Outcome]:
    """Outcomes of what is waiting, scored, in the order they come."""
    tasks = [query.task for query in evaluation.waiting]
    phase = f"{evaluation.label} queries"
    for outcome in world.rollout(evaluation.split, tasks, evaluation.agent, sampling, phase):
        yield world.score([outcome])[0] if isinstance(outcome, Trajectory) else outcome


def _summary(config: Config, evaluation: Evaluation) -> tuple[list[PredictionRow], EvalSummary, list[Trajectory]]:
    """Rows in the order of the annotations, their summary, and the trajectories among them."""
    folder = DatasetFolder(config.data.root)
    durations = {name: row["source_duration_sec"] for name, row in read_meta(folder.clips(evaluation.split)).items()}
    durations |= {query.task.gt_video: query.task.gt_duration for query in evaluation.queries}
    corpus = json.loads(folder.docid2row(evaluation.split).read_text(encoding="utf-8"))
    shared: dict[str, Any] = {
        "max_turns": evaluation.agent.max_turns,
        "corpus_size": len(corpus),
        "fingerprint": evaluation.fingerprint,
    }
    rows, trajectories = [], []
    for query in evaluation.queries:
        task, outcome = query.task, evaluation.outcomes[query.task.query_id]
        if isinstance(outcome, Trajectory):
            trajectories.append(outcome)
            latents = evaluation.agent.depth
            rows.append(prediction_row(outcome, query.index, latents=latents, durations=durations, **shared))
        else:
            reason, message = outcome.reason, outcome.message
            truth: dict[str, Any] = {name: getattr(task, name) for name in ("gt_video", "gt_span", "gt_duration")}
            rows.append(failed_row(query.index, task.query_id, task.query, reason, message, **truth, **shared))
    summary = summarise(rows, len(corpus)).model_copy(update={"settings": evaluation.settings})
    return rows, summary, trajectories


def _trajectories(config: Config, evaluation: Evaluation) -> Path:
    return config.run_dir / f"{evaluation.label}{EVALUATION_LOG}"


def _log_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    played = (evaluation.outcomes.get(query.task.query_id) for query in evaluation.queries)
    return [
        LoggedTrajectory(outcome, fingerprint=evaluation.fingerprint).to_json()
        for outcome in played
        if isinstance(outcome, Trajectory)
    ]
