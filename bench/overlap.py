"""Stage 2 with and without rollouts that run ahead of the learner: samples a second, and the share of the ideal gain.

With r seconds of rollout and l of learning a step takes r + l one after the other and at best max(r, l) side by side.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from pipelines.train import grpo
from vsr1.config import Config
from vsr1.runs.scalars import SCALARS, read_scalars


def overlap(config: Config, warm_up: int, rounds: int) -> dict[str, Any]:
    """Run Stage 2 for each bound in turn, in `run_dir/round-N/staleness-B`, and compare within each round.

    Args:
        warm_up: first steps that do not count; the last two do not either, as nothing is played ahead of them.

    Returns:
        medians over the rounds, and each round's ratio of samples a second.
    """
    folders = [config.run_dir / f"round-{number}" for number in range(1, rounds + 1)]
    pairs = [[_measured(config, folder, bound, warm_up) for bound in (0, 1)] for folder in folders]
    ratios = [after["samples_per_second"] / before["samples_per_second"] for before, after in pairs]
    ideals = [
        (before["rollout_s"] + before["learn_s"]) / max(before["rollout_s"], before["learn_s"]) for before, _ in pairs
    ]
    shares = [ratio / ideal for ratio, ideal in zip(ratios, ideals, strict=True)]
    return {
        **{f"staleness_{bound}": _medians([runs[bound] for runs in pairs]) for bound in (0, 1)},
        "ratio": median(ratios),
        "ideal": median(ideals),
        "share_of_ideal": median(shares),
        "ratios": ratios,
    }


def _medians(figures: list[dict[str, float]]) -> dict[str, float]:
    return {name: median(one[name] for one in figures) for name in figures[0]}


def _measured(config: Config, folder: Path, bound: int, warm_up: int) -> dict[str, float]:
    run, settings = folder / f"staleness-{bound}", config.grpo.model_copy(update={"staleness": bound})
    if not (run / "checkpoints" / "grpo").is_dir():
        grpo.train(config.model_copy(update={"run_dir": run, "grpo": settings}))
    return _figures(run, settings.prompts_per_step * settings.group_size, range(warm_up + 1, settings.steps - 1))


def _figures(run: Path, samples: int, steps: range) -> dict[str, float]:
    values = {(row["step"], row["name"]): row for row in read_scalars(run / SCALARS) if row["stage"] == "grpo"}
    ends = [values[step, "reward/total"]["time"] for step in (steps.start - 1, *steps)]

    def middle(name: str) -> float:
        return median(values[step, name]["value"] for step in steps)

    later = steps[len(steps) // 2 :]
    return {
        "samples_per_second": samples * len(steps) / (ends[-1] - ends[0]),
        "rollout_s": middle("seconds/rollout"),
        "learn_s": middle("seconds/learn"),
        "staleness": middle("staleness"),
        "reward_later": median(values[step, "reward/total"]["value"] for step in later),
    }
