"""Evaluation of a split: all queries in flight at once, against one query at a time, on the same services."""

from __future__ import annotations

import platform
import time
from statistics import median
from typing import Any

from actors.rollout import Sampling
from pipelines.data.build import ensure_dataset
from pipelines.machine.resources import cores
from pipelines.stage.connection import connect
from pipelines.stage.tasks import evaluation_queries
from pipelines.stage.workers import Services, complete, services
from vsr1.config import Config
from vsr1.search.record import SearchTask, SearchTrajectory


def bench_eval(config: Config, rounds: int) -> dict[str, Any]:
    """Queries per second both ways, medians over `rounds`, and whether every trajectory is the same.

    The ratio is of seconds per query. Engine caches are warm in all rounds: one batch is played before the first.

    Raises:
        RolloutError: a query failed.
    """
    connect(config)
    ensure_dataset(config)
    split = config.eval.split
    tasks = [query.task for query in evaluation_queries(config, split) if not query.skipped]
    with services(config, split) as world:
        _play(world, config, tasks)
        together, single = [], []
        batched: list[SearchTrajectory] = []
        for _ in range(rounds):
            began = time.perf_counter()
            batched = _play(world, config, tasks)
            together.append(time.perf_counter() - began)
            began = time.perf_counter()
            alone = [trajectory for task in tasks for trajectory in _play(world, config, [task])]
            single.append(time.perf_counter() - began)
    alone.sort(key=lambda trajectory: trajectory.task.query_id)
    differing = [a.query_id for a, b in zip(batched, alone, strict=True) if _said(a) != _said(b)]
    return {
        "bench": "eval",
        "cpu": platform.machine(),
        "cores": cores(),
        "device": config.model.device,
        "queries": len(tasks),
        "turns": sum(len(trajectory.turns) for trajectory in batched),
        "batched_s": round(median(together), 3),
        "one_at_a_time_s": round(median(single), 3),
        "ratio": round(median(b / a for a, b in zip(together, single, strict=True)), 2),
        "differing": differing,
    }


def _play(world: Services, config: Config, tasks: list[SearchTask]) -> list[SearchTrajectory]:
    outcomes = list(world.rollout(config.eval.split, tasks, config.agent, Sampling(config.retrieval.top_k)))
    played, _ = complete(outcomes)
    return sorted(played, key=lambda trajectory: trajectory.task.query_id)


def _said(trajectory: SearchTrajectory) -> list[Any]:
    """What an evaluation counts, turn by turn."""
    return [
        (
            s.record.video_id,
            s.response_token_ids,
            s.record.verdict,
            s.record.span,
            s.record.gt_rank_before,
            s.record.gt_rank_after,
        )
        for s in trajectory.turns
    ]
