"""The report page of a large run: its size, and how long it takes to make.

The run is made up, but its files have the format of a real one and its films are those of the toy world: a film of its
own for every trajectory, so that the page is as large as it can be.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from bench.measure import Rounds
from pipelines.evaluation.report import read_run
from vsr1.episode.sample import SampleId
from vsr1.episode.trajectory import Turn
from vsr1.metrics.prediction_rows import prediction_row
from vsr1.metrics.summary import summarise
from vsr1.report.page import write_report
from vsr1.runs.folder import EVALUATION_LOG, TRAINING_LOG
from vsr1.runs.trajectories import LoggedTrajectory, append_trajectories
from vsr1.search.prompts import assistant_text
from vsr1.search.record import SearchTask, SearchTrajectory, SearchTurn
from vsr1.toy.render import render
from vsr1.toy.world import Example, make_corpus, reasoning
from vsr1.video.clips import Clip, ClipReference

GROUP = 4  # samples of a training query
BLOCK = 1000  # films of one toy corpus
LISTED = 10  # videos in a ranking
LATENTS, DIM = 8, 16


def bench_report(trajectories: int, rounds: int, out: Path | None = None) -> dict[str, Any]:
    """Return the size of the page of so many trajectories and the median seconds to read the run and write its page.

    Args:
        out: where to keep the page.
    """
    with tempfile.TemporaryDirectory() as folder:
        films = write_synthetic_run(Path(folder) / "synthetic", trajectories)
        page = out or Path(folder) / "report.html"

        def frames(video: str, clip_hash: str) -> Clip:
            times = np.arange(float(films[video].film.duration))
            return Clip(video, render(films[video].film, times), times, clip_hash)

        taken = Rounds()
        for _ in range(rounds):
            with taken.time("build"):
                run = read_run(Path(folder) / "synthetic", "synthetic", with_frames=False)
                write_report(page, title="synthetic run", runs=[replace(run, frames=frames)])
        return {
            "trajectories": trajectories,
            "videos": len(films),
            "rounds": rounds,
            "megabytes": page.stat().st_size / 1e6,
            "build_seconds": taken.median("build"),
        }


def write_synthetic_run(folder: Path, count: int, seed: int = 0) -> dict[str, Example]:
    """Write a run folder of two evaluations and training groups, and return the example behind each video id.

    Every trajectory shows a film of its own in its first turn.
    """
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    examples = list(_examples(count, seed))
    queries = max(1, count // 4)
    for name, first in (("before", 0), ("after", queries)):
        played = [_trajectory(examples, at, at, 0, generator) for at in range(first, min(first + queries, count))]
        if not played:
            continue
        size = max(100, count)
        rows = [prediction_row(item, at, max_turn=3, corpus_size=size) for at, item in enumerate(played)]
        (folder / f"{name}.json").write_text(json.dumps(summarise(rows).to_json()))
        append_trajectories(folder / f"{name}{EVALUATION_LOG}", [LoggedTrajectory(item) for item in played])
    for step, first in enumerate(range(2 * queries, count, GROUP), start=1):
        members = range(first, min(first + GROUP, count))
        group = [_trajectory(examples, first, at, at - first, generator) for at in members]
        append_trajectories(folder / TRAINING_LOG, [LoggedTrajectory(item, step) for item in group])
    scalars = [
        {"stage": "grpo", "step": step, "name": name, "value": float(generator.normal(step / 50, 0.2)), "time": 0.0}
        for step in range(1, 101)
        for name in ("reward/mean", "loss", "entropy")
    ]
    (folder / "scalars.jsonl").write_text("".join(json.dumps(row) + "\n" for row in scalars))
    return {example.film.video_id: example for example in examples}


def _examples(count: int, seed: int) -> Iterator[Example]:
    for block in range(0, count, BLOCK):
        for example in make_corpus("test", max(2, min(BLOCK, count - block)), seed + block):
            yield replace(example, film=replace(example.film, video_id=f"{block // BLOCK}_{example.film.video_id}"))


def _trajectory(
    examples: list[Example], query: int, shown: int, sample: int, rng: np.random.Generator
) -> SearchTrajectory:
    """Make one about the query of `examples[query]`, whose first turn shows the film of `examples[shown]`."""
    target = examples[query]
    moment = (float(target.moment[0]), float(target.moment[1]))
    videos = [shown] if shown == query and rng.random() < 0.6 else [shown, query if rng.random() < 0.7 else shown]
    ranks = [int(rank) for rank in np.ceil(rng.pareto(1.0, len(videos) + 1))]
    turns: list[Turn[SearchTurn]] = []
    for number, at in enumerate(videos, start=1):
        film, last = examples[at].film, number == len(videos)
        matched = bool(last and (at == query or rng.random() < 0.3))
        span = (moment[0] + float(rng.integers(-2, 4)), moment[1] + float(rng.integers(-3, 3))) if matched else None
        think = reasoning(list(film.events), target.queried, at == query)
        others = [examples[int(index)].film.video_id for index in rng.integers(0, len(examples), LISTED - 1)]
        scores = np.sort(rng.random(LISTED))[::-1].tolist()
        turns.append(
            Turn(
                number=number,
                clips=[ClipReference(film.video_id, "")],
                prompt_token_ids=[1] * 100,
                response_token_ids=[2] * 60,
                response_logprobs=[-0.1] * 60,
                text=assistant_text(think, matched, span),
                finish_reason="stop",
                seed=0,
                weight_version=0,
                seconds=float(rng.random()),
                record=SearchTurn(
                    video_id=film.video_id,
                    verdict="matched" if matched else "not_matched",
                    span=span,
                    retrieved=list(zip([film.video_id, *others], scores, strict=True)),
                    gt_rank_before=min(100, ranks[number - 1]),
                    gt_rank_after=None if last else min(100, ranks[number]),
                    index_version="synthetic",
                    refined=not last,
                ),
                latents={} if last else {"query": rng.normal(size=(LATENTS, DIM)).astype(np.float32)},
            )
        )
    for before, after in pairwise(turns):
        before.record.retrieved_after = after.record.retrieved
    rewards = rng.normal(0.5, 0.5, len(turns)).tolist()
    task = SearchTask(
        id=SampleId(f"q{query}", sample),
        query_id=f"q{query}",
        query=target.query,
        gt_video=target.film.video_id,
        gt_span=moment,
        gt_duration=float(target.film.duration),
    )
    return SearchTrajectory(
        task,
        turns,
        end_reason="matched" if turns[-1].record.verdict == "matched" else "max_turns",
        terms={"verification": 1.0, "think_format": 1.0, "temporal_iou": 0.5, "retrieval": 0.1},
        turn_rewards=rewards,
        reward=sum(rewards),
    )
