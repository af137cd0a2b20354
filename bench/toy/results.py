"""Tables of the toy benchmark: mean and spread over the seeds of each arm. `python -m bench toy results`.

A run folder is named ARM-SEED; each evaluation in it is a row `ARM LABEL`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev

from vsr1.metrics.predictions import PredictionError
from vsr1.metrics.summary import EvalSummary

Score = Callable[[EvalSummary], float | None]
EVALUATIONS = ("after", "eval")  # of a trained policy, of one as it is
COLUMNS: dict[str, Score] = {
    "R@1, engine": lambda s: s.engine.recall_at_1,
    "R@1, turn 1 refined": lambda s: s.refined_by_turn["1"].recall_at_1,
    "R@1, last": lambda s: s.refined.recall_at_1,
    "IoU ≥ 0.5": lambda s: s.moments.iou_05,
    "mean IoU": lambda s: s.moments.mean_iou,
    "verification": lambda s: s.verification_all_turns.accuracy,
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
    for file in sorted(folder.glob("*-*/*.json")):
        arm, _, seed = file.parent.name.rpartition("-")
        label, _, agent = file.stem.partition("-")
        if seed.isdigit() and label in EVALUATIONS and not file.name.endswith(".published.json"):
            summaries[f"{arm} {agent}".strip()].append(EvalSummary.model_validate(json.loads(file.read_text())))
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
