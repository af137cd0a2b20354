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

Read = Callable[[EvalSummary], float | None]
EVALUATIONS = ("after", "eval")  # of a trained policy, of one as it is
COLUMNS: dict[str, Read] = {
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
    """Markdown: scores in percent and costs a query; R@1 by number of latents; IoU ≥ 0.5 and R@1 by number of turns.

    Raises:
        PredictionError: no evaluation in any folder that is named ARM-SEED.
    """
    found: dict[str, list[EvalSummary]] = defaultdict(list)
    for file in sorted(folder.glob("*-*/*.json")):
        arm, _, seed = file.parent.name.rpartition("-")
        label, _, agent = file.stem.partition("-")
        if seed.isdigit() and label in EVALUATIONS and not file.name.endswith(".published.json"):
            found[f"{arm} {agent}".strip()].append(EvalSummary.from_json(json.loads(file.read_text())))
    if not found:
        raise PredictionError(f"{folder} has no evaluation in a folder ARM-SEED; name run_dir so")
    tables: list[dict[str, Read]] = [
        COLUMNS,
        {"0": lambda s: s.engine.recall_at_1} | {n: _after_latents(n) for n in "1248"},
        {f"R@1, {n}": _after_turns(n) for n in "123"} | {f"IoU ≥ 0.5, {n}": _moments_after_turns(n) for n in "123"},
    ]
    return "\n".join(_table(found, columns) for columns in tables)


def _after_latents(count: str) -> Read:
    return lambda s: s.refined_by_depth[count].recall_at_1 if count in s.refined_by_depth else None


def _after_turns(count: str) -> Read:
    return lambda s: s.refined_by_turn[count].recall_at_1 if count in s.refined_by_turn else None


def _moments_after_turns(count: str) -> Read:
    return lambda s: s.moments_by_turn[count].iou_05 if count in s.moments_by_turn else None


def _table(found: dict[str, list[EvalSummary]], columns: dict[str, Read]) -> str:
    lines = ["| | seeds | " + " | ".join(columns) + " |", "| --- " * (2 + len(columns)) + "|"]
    for name, summaries in found.items():
        cells = [_cell(summaries, read, 1 if column in COSTS else 100) for column, read in columns.items()]
        if any(cells):
            lines.append(f"| {name} | {len(summaries)} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def _cell(summaries: list[EvalSummary], read: Read, scale: int) -> str:
    """`mean ± standard deviation`; empty where nothing was recorded."""
    values = [scale * value for value in map(read, summaries) if value is not None]
    if not values:
        return ""
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")
