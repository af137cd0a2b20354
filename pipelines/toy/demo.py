"""`vsr1 demo`: the whole system once, on a toy corpus, through every real part.

Render and encode videos, build the dataset, train Stage 1, train Stage 2 on the live loop with an evaluation before and
after it on the same engines, and write the report.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path

import ray
from rich.console import Console

from pipelines.command import keep_console
from pipelines.data.build import build_dataset, render_toy
from pipelines.evaluation.report import write_run_report
from pipelines.machine.placement import check_placement
from pipelines.machine.resources import check_packages
from pipelines.stage.connection import connect
from pipelines.stage.progress import shown_progress
from pipelines.train import grpo, sft
from vsr1.config import Config
from vsr1.metrics.summary import EvalSummary
from vsr1.report.metric_rows import metric_table
from vsr1.runs.folder import RunFolderError, lock_of, owned, write_config
from vsr1.storage import named, url_of


def run_demo(config: Config, console: Console) -> Path:
    """Run every stage and return the report's path. An earlier demo in `run_dir` is replaced.

    Raises:
        MachineError: a package is not installed.
        PlanError: the machine is too small for the configuration.
        RunFolderError: another process works in `run_dir`, or it is a URL.
    """
    if url_of(config.run_dir) is not None:
        raise RunFolderError(f"{named(config.run_dir)}: the demo replaces its run folder, which must be a path")
    check_packages("vllm", "deepspeed", "faiss")
    settings = config.grpo.model_copy(update={"evaluate_before": True, "evaluate_after": True})
    config = config.model_copy(update={"grpo": settings})
    check_placement(config, "demo")
    with owned(config.run_dir, "demo"):
        empty(config.run_dir)
        return _run(config, console)


def empty(run: Path) -> None:
    """Remove what is in a run folder but its locks; raise as `owned` where one of them is held."""
    with ExitStack() as others:
        for lock in run.glob(".*.lock"):
            if lock != lock_of(run, "demo"):
                others.enter_context(owned(run, lock.stem.removeprefix(".")))
        for path in run.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.suffix != ".lock":
                path.unlink()


def _run(config: Config, console: Console) -> Path:
    write_config(config, "demo")
    keep_console(config)
    with console.status("toy videos") as status:
        render_toy(config, lambda written, total: status.update(f"toy videos: {written} of {total}"))
    connect(config)
    try:
        with console.status("dataset") as status:
            report = build_dataset(config, progress=lambda text: status.update(f"dataset: {text}"))
        console.print(report.line())
        with shown_progress(console) as progress:
            start = sft.train(config, progress)
        after_sft = config.model_copy(update={"model": config.model.model_copy(update={"policy": start})})
        with shown_progress(console) as progress:
            grpo.train(after_sft, progress)
    finally:
        ray.shutdown()
    out = write_run_report([config.run_dir])
    summaries = {
        f"{name} GRPO": EvalSummary.model_validate_json((config.run_dir / f"{name}.json").read_bytes())
        for name in ("before", "after")
    }
    console.print(metric_table(summaries))
    return out
