"""Trained policies on the curve of accuracy against budget: Stage 1, Stage 2 with drawn budgets, and with one each.

`python -m bench navigate-arms -c configs/navigate-bench.yaml`. Below `run_dir`, for every seed S:

    sft-S      Stage 1
    drawn-S    Stage 2 from it, budgets drawn from `navigate.budgets`; evaluated before, which is Stage 1, and after
    fixed8-S   Stage 2 from it with the one budget 8; evaluated after

Each is a process of its own with a Ray of its own, as in `bench.toy.experiment`; several share a GPU. A run that ended
before is not made again. All play the films of `data.root`, of every length in `navigate.toy_test_minutes`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.navigate import left_soon
from bench.navigators import AGENTS
from bench.optimum import best_accuracy
from bench.toy.experiment import BenchError, Run, exit_code, missing, play_all
from vsr1.config import Config
from vsr1.environments.navigation import toy_splits
from vsr1.episode.sample import SampleId
from vsr1.formats.atomic import read_lines, write_json
from vsr1.formats.dataset import DatasetFolder
from vsr1.navigate.files import questions_file
from vsr1.navigate.summary import NavigateRow, navigate_row
from vsr1.runs.scalars import SCALARS, read_scalars
from vsr1.toy.long_corpus import LongFilms, write_long_corpus
from vsr1.toy.long_films import LongFilm
from vsr1.toy.navigators import play

STAGE_1, DRAWN, FIXED = "sft", "drawn", "fixed"
SCRIPTED = ("optimal", "reader", "greedy", "uniform")
AT = 8.0  # budget of the figures that are of one
_FIXED = re.compile(rf"{FIXED}[0-9]+")
MANY = 4.0  # least budget that lets an agent leave a branch


def navigate_arms(
    config: Config,
    arguments: Sequence[str],
    seeds: Sequence[int],
    policies: Sequence[str],
    at_once: int,
    gpus: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Train what is missing below `config.run_dir`, and return what all seeds came to.

    Args:
        config: of all runs; its seed is that of the films.
        arguments: of the command line from which `config` was read, for the processes of the runs.
        seeds: of batches, samples and drawn budgets.
        policies: of Stage 2, as in `drawn` and `fixed8`.
        at_once: runs at one time.
        gpus: of this machine.
        say: shows a line of text.

    Returns:
        `seeds`, a dict as of `arm_figures` each, and `mean`, the means of their numbers.

    Raises:
        ValueError: a policy has another name.
        BenchError: a run failed; the others are complete.
    """
    folder, data = config.run_dir, DatasetFolder(config.data.root)
    folder.mkdir(parents=True, exist_ok=True)
    if not questions_file(data, config.eval.split).is_file():
        write_long_corpus(data, toy_splits(config), config.navigate, config.seed)

    def make(run: Run, slot: int) -> int:
        own = [f"seed={run.seed}", f"run_dir={folder / run.name}", *run.own]
        own += [f"model.policy={folder / run.start}"] if run.start else []
        return exit_code(run, folder, [sys.executable, "-m", "pipelines", run.stage, *arguments, *own], slot, gpus)

    for runs in arm_runs(seeds, policies):
        wanted = missing(runs, folder)
        failures = play_all(wanted, at_once, make, say)
        if failures:
            raise BenchError(failures, len(wanted), folder)
    films = LongFilms.of_split(data, config.eval.split, config.navigate.pools.frames).films
    scripted = _scripted(films.values(), config)
    figures = {str(seed): arm_figures(folder, seed, policies, films, scripted) for seed in seeds}
    result = {"seeds": figures, "mean": mean_of(list(figures.values()))}
    write_json(folder / "curve.json", result)
    return result


def arm_runs(seeds: Sequence[int], policies: Sequence[str]) -> tuple[list[Run], list[Run]]:
    """Return Stage 1 of every seed, and what starts from it; without `drawn`, Stage 1 is evaluated by itself.

    Raises:
        ValueError: a policy has another name than `drawn`, or `fixed` and a budget.
    """
    names = [DRAWN, *(policy for policy in policies if _FIXED.fullmatch(policy))]
    if unknown := [policy for policy in policies if policy not in names]:
        raise ValueError(f"no policy is called {', '.join(unknown)}; there are drawn, and fixed8 for the budget 8")
    first, second = list[Run](), list[Run]()
    for seed in seeds:
        name = f"{STAGE_1}-{seed}"
        start = f"{name}/checkpoints/sft"
        first.append(Run(name, "sft", STAGE_1, seed))
        if DRAWN not in policies:
            second.append(Run(name, "eval", STAGE_1, seed, start))
        for policy in policies:
            own = "grpo.evaluate_before=true"
            if policy != DRAWN:
                own = f"navigate.budgets=[{policy.removeprefix(FIXED)}]"
            second.append(Run(f"{policy}-{seed}", "grpo", policy, seed, start, ("grpo.evaluate_after=true", own)))
    return first, second


def arm_figures(
    folder: Path,
    seed: int,
    policies: Sequence[str],
    films: Mapping[str, LongFilm],
    scripted: dict[str, list[NavigateRow]],
) -> dict[str, Any]:
    """Return the curve of one seed beside scripted agents and the optimum, and the figures that are read off it.

    Args:
        scripted: episodes of the same questions by agent.

    Returns:
        `minutes`: by length and budget the optimum, and of each agent and policy its accuracy and calls.
        `gain`: of each policy of Stage 2, by length and budget, what it adds to the accuracy of Stage 1.
        `against_fixed`: by budget, on films of the trained length, its accuracy above that of the best policy of one
        budget, and that policy.
        `regret`: by length of each policy, the share of the optimum that it misses with a budget of 8.
        `left_soon`: of each policy, how often a wrong first branch is left within two calls, from a budget of 4 on.
        `well_formed`: of each policy, the share of its replies that are a call of an open node, or an answer.
        `steps`: of each training.
    """
    start = f"{DRAWN}-{seed}/before.jsonl" if DRAWN in policies else f"{STAGE_1}-{seed}/eval.jsonl"
    files = {"stage_1": folder / start} | {policy: folder / f"{policy}-{seed}" / "after.jsonl" for policy in policies}
    trained = {name: [NavigateRow.model_validate(row) for row in read_lines(file)] for name, file in files.items()}
    minutes = sorted({_minutes(film) for film in films.values()})
    curves: dict[str, dict[str, dict[str, Any]]] = {
        f"{length}": {
            f"{budget:g}": {"optimum": _optimum(films, length, budget)}
            | {name: _figures(_at(rows, films, length, budget)) for name, rows in (scripted | trained).items()}
            for budget in sorted({row.budget for row in trained["stage_1"]})
        }
        for length in minutes
    }
    figures: dict[str, Any] = {
        "minutes": curves,
        "regret": {
            length: {name: 1 - at[name]["accuracy"] / at["optimum"] for name in trained}
            for length, curve in curves.items()
            if (at := curve.get(f"{AT:g}"))
        },
        "left_soon": {name: _left_soon(rows, films) for name, rows in trained.items()},
        "well_formed": {name: _well_formed(rows) for name, rows in trained.items()},
        "steps": {name: _steps(folder / f"{name}-{seed}") for name in (STAGE_1, *policies)},
        "gain": {
            policy: {
                length: {budget: at[policy]["accuracy"] - at["stage_1"]["accuracy"] for budget, at in curve.items()}
                for length, curve in curves.items()
            }
            for policy in policies
        },
    }
    if DRAWN in policies and len(policies) > 1:
        figures["against_fixed"] = {budget: _compared(at) for budget, at in curves[f"{minutes[0]}"].items()}
    return figures


def mean_of(values: list[Any]) -> Any:
    """Return the means of numbers in dicts of one form; what is no number is left out, as None."""
    if isinstance(values[0], dict):
        return {name: mean_of([value[name] for value in values]) for name in values[0]}
    numbers = [value for value in values if isinstance(value, int | float)]
    return fmean(numbers) if numbers else None


def _scripted(films: Iterable[LongFilm], config: Config) -> dict[str, list[NavigateRow]]:
    """Play the scripted agents over all questions and budgets."""
    settings = config.navigate
    return {
        name: [
            navigate_row(play(film, film.task(SampleId(film.film), budget), settings, AGENTS[name])[0])
            for film, budget in product(films, settings.eval_budgets)
        ]
        for name in SCRIPTED
    }


def _minutes(film: LongFilm) -> int:
    return round(film.seconds / 60)


def _at(rows: list[NavigateRow], films: Mapping[str, LongFilm], minutes: int, budget: float) -> list[NavigateRow]:
    return [row for row in rows if row.budget == budget and _minutes(films[row.question_id]) == minutes]


def _optimum(films: Mapping[str, LongFilm], minutes: int, budget: float) -> float:
    of_length = [film for film in films.values() if _minutes(film) == minutes]
    return fmean(best_accuracy(film.width, len(film.plan.look_alikes), int(budget)) for film in of_length)


def _figures(rows: list[NavigateRow]) -> dict[str, float]:
    return {
        "questions": len(rows),
        "accuracy": fmean(row.right for row in rows),
        "calls": fmean(row.calls for row in rows),
    }


def _left_soon(rows: list[NavigateRow], films: Mapping[str, LongFilm]) -> float | None:
    verdicts = [
        left_soon(task, row.nodes)
        for row in rows
        if row.budget >= MANY
        for task in [films[row.question_id].task(SampleId(row.qid))]
    ]
    of_wrong = [verdict for verdict in verdicts if verdict is not None]
    return fmean(of_wrong) if of_wrong else None


def _well_formed(rows: list[NavigateRow]) -> float:
    replies = sum(sum(row.statuses.values()) for row in rows)
    good = sum(row.statuses.get(status, 0) for row in rows for status in ("ok", "answered", "abstained"))
    return good / max(replies, 1)


def _compared(at: dict[str, Any]) -> dict[str, Any]:
    fixed = {name: values["accuracy"] for name, values in at.items() if name.startswith(FIXED)}
    best = max(fixed, key=lambda name: fixed[name])
    return {"above_best_fixed": at[DRAWN]["accuracy"] - fixed[best], "best_fixed": best}


def _steps(run: Path) -> int:
    rows = read_scalars(run / SCALARS) if (run / SCALARS).is_file() else []
    return max((row["step"] for row in rows if row["stage"] in ("sft", "grpo")), default=0)
