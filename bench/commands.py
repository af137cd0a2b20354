"""`python -m bench`: what can be measured on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from bench.toy import commands as toy
from pipelines.command import ConfigFile, Overrides, guarded, read_settings

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Measurements on this machine, one line of JSON each."
)
app.add_typer(toy.commands, name="toy")


@app.command("latents")
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
    from bench.engine import LatentWork, bench_latents

    work = LatentWork(shape, samples, group, frames, side, words, rounds)
    print(json.dumps(guarded(bench_latents, work)))


@app.command("parity")
def bench_parity_command(
    shape: Annotated[str, typer.Option(help="toy or 2b, random weights")] = "toy",
    samples: Annotated[int, typer.Option(help="Requests, half of them with a clip.")] = 32,
) -> None:
    """Log-probs and latents of the engine against a float32 oracle."""
    from bench.engine import bench_parity

    print(json.dumps(guarded(bench_parity, shape, samples)))


@app.command("weights")
def bench_weights_command(
    shape: Annotated[str, typer.Option(help="toy or 2b, random weights")] = "toy",
    way: Annotated[str, typer.Option(help="file (CPU), ipc (one GPU) or nccl (two GPUs)")] = "file",
    rounds: Annotated[int, typer.Option(help="Measured pushes; medians count.")] = 5,
) -> None:
    """A push of a whole policy into an engine, and the check that it arrived."""
    from bench.engine import bench_weights

    print(json.dumps(guarded(bench_weights, shape, way, rounds)))


@app.command("data")
def bench_data_command(
    overrides: Overrides = None,
    config: ConfigFile = None,
    videos: Annotated[int, typer.Option(help="Toy videos of the smaller corpus; the other has twice as many.")] = 200,
    side: Annotated[int, typer.Option(help="Pixels of a frame's side.")] = 64,
) -> None:
    """Dataset construction: each step's seconds, and memory as the corpus doubles."""
    settings = read_settings(config, overrides, False)
    from bench.data import bench_data

    print(json.dumps(guarded(bench_data, videos, side, settings)))


@app.command("retrieval")
def bench_retrieval_command(
    videos: Annotated[int, typer.Option(help="Vectors in the corpus.")] = 100_000,
    dim: Annotated[int, typer.Option(help="Numbers in a vector.")] = 2048,
    batch: Annotated[int, typer.Option(help="Queries in one call.")] = 256,
    shards: Annotated[int, typer.Option(help="Shard actors, one thread each.")] = 2,
    rounds: Annotated[int, typer.Option(help="Measured batches; medians count.")] = 7,
) -> None:
    """The search service beside one plain FAISS index on the same vectors."""
    from bench.retrieval import bench_retrieval

    print(json.dumps(guarded(bench_retrieval, videos, dim, batch, shards, rounds)))


@app.command("kills")
def bench_kills_command(
    videos: Annotated[int, typer.Option(help="Vectors in the corpus.")] = 10_000,
    dim: Annotated[int, typer.Option(help="Numbers in a vector.")] = 256,
    searches: Annotated[int, typer.Option(help="Searches that are checked.")] = 10_000,
    shards: Annotated[int, typer.Option(help="Shards, of two replicas each.")] = 2,
    rounds: Annotated[int, typer.Option(help="Kills whose recovery is timed; medians count.")] = 5,
) -> None:
    """Searches while shards are killed, every answer checked; seconds until a search is answered after a kill."""
    from bench.retrieval import bench_kills

    print(json.dumps(guarded(bench_kills, videos, dim, searches, shards, rounds)))


@app.command("clips")
def bench_clips_command(
    videos: Annotated[Path | None, typer.Option(help="Folder of video files to measure besides the toy ones.")] = None,
    toy_videos: Annotated[int, typer.Option(help="Toy videos rendered and measured.")] = 16,
    fps: Annotated[float, typer.Option(help="Frames per second kept of a video.")] = 1.0,
    max_frames: Annotated[int, typer.Option(help="Most frames in a clip.")] = 64,
) -> None:
    """Raw against compact clip storage: bytes, exactness, seconds."""
    from bench.clips import bench_clips

    print(json.dumps(guarded(bench_clips, toy_videos, videos, fps, max_frames)))


@app.command("eval")
def bench_eval_command(
    overrides: Overrides = None,
    config: ConfigFile = None,
    rounds: Annotated[int, typer.Option(help="Measured evaluations each way; medians count.")] = 3,
) -> None:
    """An evaluation with all queries in flight, and one query at a time."""
    settings = read_settings(config, overrides, False)
    from bench.evaluation import bench_eval

    print(json.dumps(guarded(bench_eval, settings, rounds)))


@app.command("report")
def bench_report_command(
    trajectories: Annotated[int, typer.Option(help="Trajectories on the page, each with a video of its own.")] = 5000,
    rounds: Annotated[int, typer.Option(help="Measured openings in a fresh browser; medians count.")] = 3,
    out: Annotated[Path | None, typer.Option(help="Keep the page there.")] = None,
) -> None:
    """The report page of a large run: its size, and the waits of a reader in Chromium."""
    from bench.report import bench_report

    print(json.dumps(guarded(bench_report, trajectories, rounds, out)))


@app.command("serve")
def bench_serve_command(
    overrides: Overrides = None,
    config: ConfigFile = None,
    requests: Annotated[int, typer.Option(help="Searches over which memory is watched; 0: none.")] = 10_000,
    max_turns: Annotated[int | None, typer.Option(help="Of each search; as trained if left out.")] = None,
) -> None:
    """The service under load: answers a second, latencies, overload, memory; every answer checked."""
    settings = read_settings(config, overrides, False)
    from bench.service import bench_serve

    print(json.dumps(guarded(bench_serve, settings, requests, max_turns)))


@app.command("faults")
def bench_faults_command(
    overrides: Overrides = None,
    config: ConfigFile = None,
    max_turns: Annotated[int | None, typer.Option(help="Of each search; as trained if left out.")] = None,
) -> None:
    """Parts of the service killed under load: what searches get, and seconds until it answers again."""
    settings = read_settings(config, overrides, False)
    from bench.service import bench_faults

    print(json.dumps(guarded(bench_faults, settings, max_turns)))
