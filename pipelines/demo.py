"""`vsr1 demo`: the whole system once, on a toy corpus, through every real part.

Render and encode videos, build the dataset, train Stage 1, evaluate, train Stage 2 on the live loop, evaluate again,
and write the report.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np
import ray
from rich.console import Console

from pipelines import evaluate, grpo, sft
from pipelines.data.build import build_dataset
from pipelines.machine import check_packages
from pipelines.plan import capacity, placement_plan
from pipelines.progress import shown_progress
from pipelines.run_folder import write_config
from pipelines.services import connect
from vsr1.config import Config
from vsr1.formats.clips import ClipFolder
from vsr1.formats.dataset import DatasetFolder
from vsr1.report import write_report
from vsr1.report.terminal import metric_table
from vsr1.runlog import read_scalars
from vsr1.toy.corpus import write_toy_corpus


def run_demo(config: Config, console: Console) -> Path:
    """Run every stage and return the report's path. An earlier demo in `run_dir` is replaced."""
    check_packages("vllm", "deepspeed", "faiss")
    placement_plan(config, capacity(config)).check()
    run = config.run_dir
    if run.exists():
        shutil.rmtree(run)
    run.mkdir(parents=True)
    write_config(config, "demo")
    began = time.monotonic()
    with console.status("toy videos") as status:
        write_toy_corpus(
            config.data.root,
            config.toy.train,
            config.toy.test,
            config.seed,
            lambda done, all_: status.update(f"toy videos: {done} of {all_}"),
            val=config.toy.val,
        )
    connect(config)
    try:
        with console.status("dataset") as status:
            report = build_dataset(config, progress=lambda text: status.update(f"dataset: {text}"))
        console.print(report.line())
        with shown_progress(console) as progress:
            start = sft.train(config, progress)
        after_sft = config.model_copy(update={"model": config.model.model_copy(update={"policy": start})})
        with shown_progress(console) as progress:
            before, _ = evaluate.evaluate(after_sft, progress, name="before")
        with shown_progress(console) as progress:
            final = grpo.train(after_sft, progress)
        after_grpo = config.model_copy(update={"model": config.model.model_copy(update={"policy": final})})
        with shown_progress(console) as progress:
            after, trajectories = evaluate.evaluate(after_grpo, progress, name="after")
    finally:
        ray.shutdown()
    evaluations = {"before GRPO": before.to_json(), "after GRPO": after.to_json()}
    clips = ClipFolder(DatasetFolder(config.data.root).clips(config.eval.split), config.data.timestamps)

    def frames(video: str) -> tuple[np.ndarray, np.ndarray]:
        clip = clips.read(video)
        return clip.frames, clip.timestamps

    out = run / "report.html"
    write_report(
        out,
        title="vsr1 demo",
        settings={
            "corpus": f"{config.toy.train} training and {config.toy.test} test videos, seed {config.seed}",
            "Stage 1": f"{config.sft.epochs} epoch(s), batch {config.sft.batch_size}",
            "Stage 2": f"{config.grpo.steps} steps, {config.grpo.prompts_per_step} by {config.grpo.group_size} samples",
            "agent": f"up to {config.agent.max_turns} turns, {config.agent.latents} latents",
            "wall clock": f"{(time.monotonic() - began) / 60:.1f} minutes",
        },
        scalars=read_scalars(run / "scalars.jsonl"),
        evaluations=evaluations,
        trajectories=trajectories,
        frames=frames,
    )
    console.print(metric_table(evaluations))
    return out
