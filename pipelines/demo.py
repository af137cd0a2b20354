"""`vsr1 demo`: the whole system once, on a toy corpus, through every real part.

Render and encode videos, build the dataset, train Stage 1, evaluate, train Stage 2 on the live loop, evaluate again,
and write the report.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pipelines import evaluate, grpo, sft
from pipelines.data.build import build_dataset
from pipelines.machine import check_packages
from pipelines.plan import capacity, placement_plan
from pipelines.report import write_run_report
from pipelines.services import connect
from vsr1.config import Config, dump_config
from vsr1.report import metric_table
from vsr1.toy.corpus import write_toy_corpus


def run_demo(config: Config, console: Console) -> Path:
    """Run every stage and return the report's path. An earlier demo in `run_dir` is replaced."""
    check_packages("vllm", "deepspeed", "faiss")
    placement_plan(config, capacity(config)).check()
    run = config.run_dir
    if run.exists():
        shutil.rmtree(run)
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    with _bar(console, "toy videos") as bar:
        write_toy_corpus(
            config.data.root,
            config.toy.train,
            config.toy.test,
            config.seed,
            lambda done, all_: bar("toy videos", done, all_),
            val=config.toy.val,
        )
    connect(config)
    try:
        with console.status("dataset") as status:
            report = build_dataset(config, progress=lambda text: status.update(f"dataset: {text}"))
        console.print(report.line())
        with _bar(console, "Stage 1: SFT") as bar:
            start = sft.train(config, bar)
        after_sft = config.model_copy(update={"model": config.model.model_copy(update={"policy": start})})
        with _bar(console, "evaluation before GRPO") as bar:
            before, _ = evaluate.evaluate(after_sft, bar, name="before")
        with _bar(console, "Stage 2: GRPO") as bar:
            final = grpo.train(after_sft, bar)
        after_grpo = config.model_copy(update={"model": config.model.model_copy(update={"policy": final})})
        with _bar(console, "evaluation after GRPO") as bar:
            after, _ = evaluate.evaluate(after_grpo, bar, name="after")
    finally:
        ray.shutdown()
    out = write_run_report([run])
    console.print(metric_table({"before GRPO": before.to_json(), "after GRPO": after.to_json()}))
    return out


@contextmanager
def _bar(console: Console, title: str) -> Iterator:
    """A progress bar whose text and counts the callback sets; one plain line at the end without a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=False) as progress:
        task = progress.add_task(title, total=None)

        def update(text: str, done: int, total: int) -> None:
            progress.update(task, description=f"{title}: {text}", completed=done, total=total)

        yield update
