"""Tables of the toy benchmark: mean and spread over the seeds of each arm. `python -m bench toy results`.

A run folder is named ARM-SEED; each evaluation in it is a row `ARM LABEL`, and a line of JSON (`result_lines`).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from vsr1.metrics.predictions import PredictionError
from vsr1.metrics.summary import EvalSummary, VerdictCounts
from vsr1.runs.scalars import SCALARS, read_scalars

Score = Callable[[EvalSummary], float | None]
EVALUATIONS = ("after", "eval")  # of a trained policy, of one as it is
COLUMNS: dict[str, Score] = {
    "R@1, engine": lambda s: s.engine.recall_at_1,
    "R@1, turn 1 refined": lambda s: s.refined_by_turn["1"].recall_at_1,
    "R@1, last": lambda s: s.refined.recall_at_1,
    "IoU ≥ 0.5": lambda s: s.moments.iou_05,
    "mean IoU": lambda s: s.moments.mean_iou,
    "verification": lambda s: s.verification_all_turns.accuracy,
    "right rejected": lambda s: _share(s.verification_all_turns.right_video, "not_matched"),
    "wrong accepted": lambda s: _share(s.verification_all_turns.wrong_video, "matched"),
    "turns": lambda s: s.turns_per_query,
    "text tokens": lambda s: s.text_tokens_per_query,
    "latents": lambda s: s.latent_tokens_per_query,
}
COSTS = {"turns", "text tokens", "latents"}  # as they are; the others are shares, in percent


def results(folder: Path) -> str:
    """Return Markdown tables: scores in percent and costs a query; R@1 by latents; IoU ≥ 0.5 and R@1 by turns.

    Raises:
        PredictionError: no evaluation in any folder that is named ARM-SEED.
    """
    summaries: dict[str, list[EvalSummary]] = defaultdict(list)
    for run in sorted(path for path in folder.glob("*-*") if path.name.rpartition("-")[2].isdigit()):
        for agent, summary in _evaluations(run).items():
            summaries[f"{run.name.rpartition('-')[0]} {agent}".strip()].append(summary)
    if not summaries:
        raise PredictionError(f"{folder} has no evaluation in a folder ARM-SEED; name run_dir so")
    turns = ("1", "2", "3")
    tables: list[dict[str, Score]] = [
        COLUMNS,
        {"0": lambda s: s.engine.recall_at_1} | {count: _after_latents(count) for count in ("1", "2", "4", "8")},
        {f"R@1, {turn}": _after_turn(turn) for turn in turns}
        | {f"IoU ≥ 0.5, {turn}": _moments_after_turn(turn) for turn in turns},
    ]
    return "\n".join(_table(summaries, columns) for columns in tables)


def result_lines(run: Path) -> list[dict[str, Any]]:
    """Return a JSON value for each evaluation in a folder ARM-SEED: its scores, and what the training took.

    Shares are in 0..1; `seconds` are those of the training's steps, and `steps` how many there were.
    """
    arm, _, seed = run.name.rpartition("-")
    log = run / SCALARS
    rows = [row for row in read_scalars(log) if row["stage"] in ("sft", "grpo")] if log.is_file() else []
    seconds = [row["value"] for row in rows if row["name"].startswith("seconds/") and row["name"].count("/") == 1]
    training = {"steps": max((row["step"] for row in rows), default=0), "seconds": round(sum(seconds), 1)}
    named = {"arm": arm, "seed": int(seed)}
    return [
        named | {"agent": agent} | training | {column: score(summary) for column, score in COLUMNS.items()}
        for agent, summary in _evaluations(run).items()
    ]


def _evaluations(run: Path) -> dict[str, EvalSummary]:
    """Return the evaluations in a run's folder by the name of the agent, "" for that of the settings."""
    files = [file for label in EVALUATIONS for file in sorted(run.glob(f"{label}*.json"))]
    return {
        file.stem.partition("-")[2]: EvalSummary.model_validate(json.loads(file.read_text()))
        for file in files
        if file.stem.partition("-")[0] in EVALUATIONS and not file.name.endswith(".published.json")
    }


def _share(counts: VerdictCounts, verdict: str) -> float | None:
    """Return the share of the looks that got a verdict, None where there were none."""
    looks = counts.matched + counts.not_matched + counts.unknown
    return getattr(counts, verdict) / looks if looks else None


def _after_latents(count: str) -> Score:
    return lambda s: s.refined_by_depth[count].recall_at_1 if count in s.refined_by_depth else None


def _after_turn(turn: str) -> Score:
    return lambda s: s.refined_by_turn[turn].recall_at_1 if turn in s.refined_by_turn else None


def _moments_after_turn(turn: str) -> Score:
    return lambda s: s.moments_by_turn[turn].iou_05 if turn in s.moments_by_turn else None


def _table(summaries: dict[str, list[EvalSummary]], columns: dict[str, Score]) -> str:
    lines = ["| | seeds | " + " | ".join(columns) + " |", "| --- " * (2 + len(columns)) + "|"]
    for name, of_seeds in summaries.items():
        cells = [_cell(of_seeds, score, 1 if column in COSTS else 100) for column, score in columns.items()]
        if any(cells):
            lines.append(f"| {name} | {len(of_seeds)} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def _cell(summaries: list[EvalSummary], score: Score, scale: int) -> str:
    """Write `mean ± standard deviation`; nothing where no seed has the score."""
    values = [scale * value for value in map(score, summaries) if value is not None]
    if not values:
        return ""
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")
