"""The command line: `vsr1 --help`. Every command reads one YAML file and `section.key=value` overrides."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from vsr1.config import Config, dump_config, load_config

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Train, evaluate and serve a video search agent.")
data_app = typer.Typer(no_args_is_help=True, help="Make and build datasets.")
toy_app = typer.Typer(no_args_is_help=True, help="The toy world's own models.")
bench_app = typer.Typer(no_args_is_help=True, help="Measurements on this machine, one line of JSON each.")
app.add_typer(bench_app, name="bench")
app.add_typer(data_app, name="data")
app.add_typer(toy_app, name="toy")
console = Console()

ConfigFile = Annotated[
    list[Path] | None,
    typer.Option("--config", "-c", help="YAML file; of several the later ones win. Defaults apply without one."),
]
Overrides = Annotated[list[str] | None, typer.Argument(help="section.key=value, later ones win.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved config and the placement plan, then stop.")]

OWN_PACKAGES = ("vsr1", "actors", "pipelines")  # whose errors name the thing, the place and the fix
JOB_FOLDERS = "working_dir_files"  # where Ray unpacks the working directory of a submitted job
DEMO_CONFIG = [Path(__file__).parent.parent / "configs" / "toy.yaml"]


@app.command()
def demo(overrides: Overrides = None, config: ConfigFile = DEMO_CONFIG, dry_run: DryRun = False) -> None:
    """The whole system once, on a toy corpus: data, SFT, GRPO on the live loop, evaluation, report."""
    settings = _settings(config, overrides, dry_run)
    from pipelines.demo import run_demo

    console.print(f"report: {_guarded(run_demo, settings, console)}")


@app.command()
def doctor(overrides: Overrides = None, config: ConfigFile = None) -> None:
    """Check versions, hardware, disk and that every part starts here; each failure comes with a fix."""
    from pipelines.doctor import doctor as check

    raise typer.Exit(check(_settings(config, overrides, False)))


@app.command("sft")
def sft_command(overrides: Overrides = None, config: ConfigFile = None, dry_run: DryRun = False) -> None:
    """Stage 1: supervised training with the retrieval loss."""
    settings = _settings(config, overrides, dry_run)
    from pipelines.sft import train

    console.print(f"checkpoint: {_guarded(train, settings, print_progress)}")


@app.command("grpo")
def grpo_command(overrides: Overrides = None, config: ConfigFile = None, dry_run: DryRun = False) -> None:
    """Stage 2: GRPO on the live loop."""
    settings = _settings(config, overrides, dry_run)
    from pipelines.grpo import train

    console.print(f"checkpoint: {_guarded(train, settings, print_progress)}")


@app.command("eval")
def eval_command(overrides: Overrides = None, config: ConfigFile = None, dry_run: DryRun = False) -> None:
    """Run the agent over a split and print the metrics."""
    settings = _settings(config, overrides, dry_run)
    from pipelines.evaluate import evaluate
    from vsr1.report.terminal import metric_table

    summary, _ = _guarded(evaluate, settings, print_progress)
    console.print(metric_table({settings.eval.split: summary.to_json()}))


@app.command("retriever")
def retriever_command(
    overrides: Overrides = None,
    config: ConfigFile = None,
    split: Annotated[str, typer.Option(help="Whose corpus is searched.")] = "test",
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option()] = 8000,
) -> None:
    """Serve the search over a split as POST /retrieve, until interrupted."""
    settings = _settings(config, overrides, False)
    from pipelines.retriever import serve_retriever

    _guarded(serve_retriever, settings, split, host, port)


@data_app.command("toy")
def data_toy(
    out: Annotated[Path, typer.Option(help="Dataset folder to write.")],
    train: Annotated[int, typer.Option(help="Videos in the training split.")] = 96,
    test: Annotated[int, typer.Option(help="Videos in the test split.")] = 48,
    val: Annotated[int, typer.Option(help="Videos in the validation split; 0 leaves it out.")] = 0,
    seed: Annotated[int, typer.Option(help="Same seed, same corpus.")] = 0,
) -> None:
    """Render the toy corpus: H.264 videos and their annotations."""
    from vsr1.toy.corpus import write_toy_corpus

    _guarded(write_toy_corpus, out, train, test, seed, val=val)
    console.print(f"{train} training, {val} validation and {test} test videos in {out}")


@data_app.command("build")
def data_build(overrides: Overrides = None, config: ConfigFile = None) -> None:
    """Build the dataset folder: clips, embeddings, index, training records."""
    settings = _settings(config, overrides, False)
    from pipelines.data.build import build_dataset
    from pipelines.services import connect

    connect(settings)
    report = _guarded(build_dataset, settings, progress=console.print)
    console.print(report.table())
    console.print(report.line())


@data_app.command("unpack")
def data_unpack(
    source: Annotated[Path, typer.Argument(help="Downloaded folder: manifest.json, shards and parts.")],
    out: Annotated[Path, typer.Option(help="Dataset folder to fill.")],
    split: Annotated[list[str], typer.Option(help="A split it must have; repeat for more.")] = ["train", "test"],  # noqa: B006
    workers: Annotated[int, typer.Option(help="Shards unpacked at one time.")] = 4,
) -> None:
    """Unpack published data and check that the dataset folder is complete; a repeated call goes on from there."""
    from pipelines.data.prepared import unpack_prepared

    _guarded(unpack_prepared, source, out, split, workers, console.print)


@data_app.command("check")
def data_check(
    overrides: Overrides = None,
    config: ConfigFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
) -> None:
    """Before a build: which videos are missing, do not decode, or are not as long as annotated. Exit code 1 if any."""
    settings = _settings(config, overrides, False)
    from pipelines.data.check import check_dataset, check_table

    checks = _guarded(check_dataset, settings, console.print if not as_json else None)
    if as_json:
        print(json.dumps({check.split: check.to_json() for check in checks}, ensure_ascii=False, indent=2))
    else:
        console.print(check_table(checks))
        for line in (line for check in checks for line in check.lines()):
            console.print(line, markup=False, soft_wrap=True)
    raise typer.Exit(int(any(check.wrong for check in checks)))


@toy_app.command("pretrain")
def toy_pretrain(
    out: Annotated[Path, typer.Option(help="Folder for policy/ and embedder/.")],
    seed: Annotated[int, typer.Option()] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    policy_steps: Annotated[int, typer.Option(help="Optimiser steps of the policy.")] = 4000,
    embedder_steps: Annotated[int, typer.Option(help="Optimiser steps of the embedder.")] = 1000,
    corpora: Annotated[int, typer.Option(help="Corpora of 2,048 films to train on.")] = 10,
) -> None:
    """Train the toy policy and embedder from random weights."""
    from vsr1.toy.pretrain import pretrain

    _guarded(pretrain, out, seed, device, policy_steps, embedder_steps, corpora)


@toy_app.command("rewrites")
def toy_rewrites(overrides: Overrides = None, config: ConfigFile = None) -> None:
    """Write the texts that `agent.refinement=text` learns from, for the toy corpus in data.root."""
    settings = _settings(config, overrides, False)
    from pipelines.toy_rewrites import write_rewrites

    console.print(f"{_guarded(write_rewrites, settings)} texts")


@bench_app.command("latents")
def bench_latents_command(
    shape: Annotated[str, typer.Option(help="toy or 2b, random weights")] = "toy",
    samples: Annotated[int, typer.Option(help="Requests at one time.")] = 32,
    group: Annotated[int, typer.Option(help="Requests on the same clip.")] = 8,
    frames: Annotated[int, typer.Option(help="Frames of a clip.")] = 16,
    side: Annotated[int, typer.Option(help="Pixels of a frame's side.")] = 64,
    words: Annotated[int, typer.Option(help="Tokens before the refinement.")] = 32,
    rounds: Annotated[int, typer.Option(help="Measured batches; medians count.")] = 5,
) -> None:
    """A refinement in the engine, in a cached Hugging Face loop, and by full recomputation."""
    from pipelines.bench import LatentWork, bench_latents

    work = LatentWork(shape, samples, group, frames, side, words, rounds)
    print(json.dumps(_guarded(bench_latents, work)))


@bench_app.command("parity")
def bench_parity_command(
    shape: Annotated[str, typer.Option(help="toy or 2b, random weights")] = "toy",
    samples: Annotated[int, typer.Option(help="Requests, half of them with a clip.")] = 32,
) -> None:
    """Log-probs and latents of the engine against a float32 oracle."""
    from pipelines.bench import bench_parity

    print(json.dumps(_guarded(bench_parity, shape, samples)))


@bench_app.command("weights")
def bench_weights_command(
    shape: Annotated[str, typer.Option(help="toy or 2b, random weights")] = "toy",
    way: Annotated[str, typer.Option(help="file (CPU), ipc (one GPU) or nccl (two GPUs)")] = "file",
    rounds: Annotated[int, typer.Option(help="Measured pushes; medians count.")] = 5,
) -> None:
    """A push of a whole policy into an engine, and the check that it arrived."""
    from pipelines.bench import bench_weights

    print(json.dumps(_guarded(bench_weights, shape, way, rounds)))


@bench_app.command("data")
def bench_data_command(
    overrides: Overrides = None,
    config: ConfigFile = None,
    videos: Annotated[int, typer.Option(help="Toy videos of the smaller corpus; the other has twice as many.")] = 200,
    side: Annotated[int, typer.Option(help="Pixels of a frame's side.")] = 64,
) -> None:
    """Dataset construction: each step's seconds, and memory as the corpus doubles."""
    settings = _settings(config, overrides, False)
    from pipelines.bench_data import bench_data

    print(json.dumps(_guarded(bench_data, videos, side, settings)))


@bench_app.command("retrieval")
def bench_retrieval_command(
    videos: Annotated[int, typer.Option(help="Vectors in the corpus.")] = 100_000,
    dim: Annotated[int, typer.Option(help="Numbers in a vector.")] = 2048,
    batch: Annotated[int, typer.Option(help="Queries in one call.")] = 256,
    shards: Annotated[int, typer.Option(help="Shard actors, one thread each.")] = 2,
    rounds: Annotated[int, typer.Option(help="Measured batches; medians count.")] = 7,
) -> None:
    """The search service beside one plain FAISS index on the same vectors."""
    from pipelines.bench_retrieval import bench_retrieval

    print(json.dumps(_guarded(bench_retrieval, videos, dim, batch, shards, rounds)))


@bench_app.command("kills")
def bench_kills_command(
    videos: Annotated[int, typer.Option(help="Vectors in the corpus.")] = 10_000,
    dim: Annotated[int, typer.Option(help="Numbers in a vector.")] = 256,
    searches: Annotated[int, typer.Option(help="Searches that are checked.")] = 10_000,
    shards: Annotated[int, typer.Option(help="Shards, of two replicas each.")] = 2,
    rounds: Annotated[int, typer.Option(help="Kills whose recovery is timed; medians count.")] = 5,
) -> None:
    """Searches while shards are killed, every answer checked; seconds until a search is answered after a kill."""
    from pipelines.bench_retrieval import bench_kills

    print(json.dumps(_guarded(bench_kills, videos, dim, searches, shards, rounds)))


@bench_app.command("clips")
def bench_clips_command(
    videos: Annotated[Path | None, typer.Option(help="Folder of video files to measure besides the toy ones.")] = None,
    toy_videos: Annotated[int, typer.Option(help="Toy videos rendered and measured.")] = 16,
    fps: Annotated[float, typer.Option(help="Frames per second kept of a video.")] = 1.0,
    max_frames: Annotated[int, typer.Option(help="Most frames in a clip.")] = 64,
) -> None:
    """Raw against compact clip storage: bytes, exactness, seconds."""
    from pipelines.bench_clips import bench_clips

    print(json.dumps(_guarded(bench_clips, toy_videos, videos, fps, max_frames)))


def run_job(job: Callable[..., Any]) -> None:
    """Entry of `python -m pipelines.<stage>`, as `ray job submit` calls it."""

    def command(overrides: Overrides = None, config: ConfigFile = None, dry_run: DryRun = False) -> None:
        settings = _settings(config, overrides, dry_run)
        if JOB_FOLDERS in settings.run_dir.parts:
            console.print(f"{settings.run_dir} goes when Ray removes this job's files; run_dir=/PATH keeps the results")
        console.print(_guarded(job, settings, print_progress))

    typer.run(command)


def print_progress(text: str, done: int, total: int) -> None:
    """One line each time a part is complete."""
    if done == total:
        console.print(f"{text}: {done}")


def _settings(path: list[Path] | None, overrides: list[str] | None, dry_run: bool) -> Config:
    settings = _guarded(load_config, path, overrides)
    if dry_run:
        from pipelines.plan import capacity, placement_plan

        plan = placement_plan(settings, capacity(settings))
        console.print(dump_config(settings), markup=False)
        console.print(plan.render())
        _guarded(plan.check)
        raise typer.Exit
    return settings


def _guarded(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call; an error that names its cause is printed in one line, any other keeps its traceback."""
    try:
        return call(*args, **kwargs)
    except Exception as error:
        cause = getattr(error, "cause", error)  # what failed inside a Ray actor
        if type(cause).__module__.split(".")[0] not in OWN_PACKAGES and not isinstance(cause, FileNotFoundError):
            raise
        error = cause
        Console(stderr=True).print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    app()
