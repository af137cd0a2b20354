"""The command line: `vsr1 --help`. Every command reads one YAML file and `section.key=value` overrides."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

import typer

from pipelines.bench_cli import bench_app
from pipelines.command import ConfigFile, DryRun, Overrides, console, guarded, read_settings, run_stage
from pipelines.machine import check_packages, keep_ray_local

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Train, evaluate and serve a video search agent.")
data_app = typer.Typer(no_args_is_help=True, help="Make and build datasets.")
toy_app = typer.Typer(no_args_is_help=True, help="The toy world's own models.")
app.add_typer(bench_app, name="bench")
app.add_typer(data_app, name="data")
app.add_typer(toy_app, name="toy")

Format = Annotated[Literal["tvr", "moment-detr"], typer.Option("--format", help="Whose file format.")]
Tolerate = Annotated[bool, typer.Option("--tolerate", help="Go on without the rows that are wrong; exit code 0.")]
DEMO_CONFIG = [Path(__file__).parent.parent / "configs" / "toy.yaml"]


@app.command()
def demo(overrides: Overrides = None, config: ConfigFile = DEMO_CONFIG, dry_run: DryRun = False) -> None:
    """The whole system once, on a toy corpus: data, SFT, GRPO on the live loop, evaluation, report."""
    settings = read_settings(config, overrides, dry_run)
    from pipelines.demo import run_demo

    console.print(f"report: {guarded(run_demo, settings, console)}")


@app.command()
def doctor(overrides: Overrides = None, config: ConfigFile = None) -> None:
    """Check versions, hardware, disk and that every part starts here; each failure comes with a fix."""
    from pipelines.doctor import doctor as check

    raise typer.Exit(check(read_settings(config, overrides, False)))


@app.command("sft")
def sft_command(overrides: Overrides = None, config: ConfigFile = None, dry_run: DryRun = False) -> None:
    """Stage 1: supervised training with the retrieval loss."""
    settings = read_settings(config, overrides, dry_run)
    from pipelines.sft import train

    console.print(f"checkpoint: {run_stage(train, settings)}")


@app.command("grpo")
def grpo_command(overrides: Overrides = None, config: ConfigFile = None, dry_run: DryRun = False) -> None:
    """Stage 2: GRPO on the live loop."""
    settings = read_settings(config, overrides, dry_run)
    from pipelines.grpo import train

    console.print(f"checkpoint: {run_stage(train, settings)}")


@app.command("eval")
def eval_command(overrides: Overrides = None, config: ConfigFile = None, dry_run: DryRun = False) -> None:
    """Run the agent over a split and print the metrics."""
    settings = read_settings(config, overrides, dry_run)
    from pipelines.evaluate import evaluate
    from pipelines.score import show_summary

    summary, _ = run_stage(evaluate, settings)
    show_summary(console, settings.eval.split, summary)
    console.print(f"rows: {settings.run_dir / 'eval.jsonl'}", soft_wrap=True)


@app.command("score")
def score_command(
    predictions: Annotated[Path, typer.Argument(help="Rows of `vsr1 eval` or of the published evaluator, or a list.")],
    annotations: Annotated[Path | None, typer.Option(help="Raw annotations; other rows are refused.")] = None,
    ground_truth: Annotated[Path | None, typer.Option(help="Of PREDICTIONS in --format.")] = None,
    form: Format = "tvr",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
    published: Annotated[bool, typer.Option("--published", help="The published evaluator's summary, as JSON.")] = False,
    tolerate: Tolerate = False,
) -> None:
    """Score a file of predictions, without a model. Exit code 1 if anything is wrong with it."""
    from pipelines.score import score_exchange, score_predictions, show_problems, show_summary
    from vsr1.metrics.published import published_summary

    if ground_truth is not None:
        print(json.dumps(guarded(score_exchange, predictions, ground_truth, form), indent=2))
        return
    summary, problems, rows = guarded(score_predictions, predictions, annotations)
    if published:
        print(json.dumps(published_summary(rows), ensure_ascii=False, indent=2))
    elif as_json:
        found = [str(problem) for problem in problems]
        print(json.dumps(summary.to_json() | {"problems": found}, ensure_ascii=False, indent=2))
    else:
        show_summary(console, predictions.name, summary)
    show_problems(problems)
    raise typer.Exit(int(bool(problems) and not tolerate))


@app.command("export")
def export_command(
    predictions: Annotated[Path, typer.Argument(help="Rows of `vsr1 eval`.")],
    out: Annotated[Path, typer.Option(help="File to write, for the evaluator that --format names.")],
    form: Format = "tvr",
    ground_truth_out: Annotated[Path | None, typer.Option(help="The ground-truth file that belongs to it.")] = None,
    tolerate: Tolerate = False,
) -> None:
    """Write ranked moments for the evaluator of TVR or Moment-DETR."""
    from pipelines.score import export_predictions, show_problems

    problems, count = guarded(export_predictions, predictions, form, out, ground_truth_out, tolerate)
    show_problems(problems)
    if problems and not tolerate:
        console.print("nothing was written; --tolerate leaves these rows out", style="red")
        raise typer.Exit(1)
    console.print(f"{count} queries in {out}")


@app.command("report")
def report_command(
    runs: Annotated[list[Path], typer.Argument(help="Run folders; several are shown side by side.")],
    out: Annotated[Path | None, typer.Option(help="File to write; report.html of the first run if left out.")] = None,
    data: Annotated[Path | None, typer.Option(help="Dataset folder, if not where the run had it.")] = None,
    frames: Annotated[bool, typer.Option(help="Show frames of the videos, which needs the dataset.")] = True,
) -> None:
    """One HTML page of runs, readable without a server: metrics, curves, every trajectory."""
    from pipelines.report import write_run_report

    console.print(f"report: {guarded(write_run_report, runs, out, data=data, with_frames=frames)}", soft_wrap=True)


@app.command("replay")
def replay_command(
    file: Annotated[Path, typer.Argument(help="train_trajectories.jsonl, or NAME.trajectories.jsonl.")],
    overrides: Overrides = None,
    config: Annotated[
        list[Path] | None, typer.Option("--config", "-c", help="Instead of the config beside FILE.")
    ] = None,
    query: Annotated[str | None, typer.Option(help="Only this query id.")] = None,
    sample: Annotated[int | None, typer.Option(help="Only this sample.")] = None,
    step: Annotated[int | None, typer.Option(help="Only this training step.")] = None,
    rerun: Annotated[bool, typer.Option("--rerun", help="Of an evaluation: also play it again, on Ray.")] = False,
    score_tolerance: Annotated[float | None, typer.Option(help="Of search scores; 1e-4 in float32.")] = None,
    logprob_tolerance: Annotated[float | None, typer.Option(help="Of log-probs and losses; 1e-3 in float32.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list instead of tables.")] = False,
) -> None:
    """Recompute recorded trajectories stage by stage and name the first stage that differs. Exit code 1 if any does."""
    from pipelines.replay.command import TOLERANCES, replay
    from pipelines.replay.stages import Tolerances
    from pipelines.run_folder import config_of

    settings = read_settings(config or [guarded(config_of, file)], overrides, False)
    usual = TOLERANCES[settings.model.dtype]
    tolerances = Tolerances(
        usual.score if score_tolerance is None else score_tolerance,
        usual.logprob if logprob_tolerance is None else logprob_tolerance,
    )
    done = guarded(replay, file, settings, query=query, sample=sample, step=step, rerun=rerun, tolerances=tolerances)
    different = [one for one in done if one.first]
    if as_json:
        print(json.dumps([one.to_json() for one in done], ensure_ascii=False, indent=2))
        raise typer.Exit(int(bool(different)))
    for one in done if len(done) == 1 else different:
        console.print(one.table())
    for one in different:
        console.print(f"{one.name}: {one.first.stage} differs: {one.first.detail}", markup=False, soft_wrap=True)
    console.print(f"{len(done) - len(different)} of {len(done)} trajectories agree in every stage that was checked")
    unchecked = Counter((f.stage, f.detail) for one in done for f in one.findings if f.status == "not checked")
    for (stage, reason), count in unchecked.items() if len(done) > 1 else ():
        console.print(f"not checked in {count}: {stage}: {reason}", markup=False, soft_wrap=True)
    raise typer.Exit(int(bool(different)))


@app.command("serve")
def serve_command(
    checkpoint: Annotated[Path, typer.Argument(help="Policy checkpoint to serve.")],
    overrides: Overrides = None,
    config: ConfigFile = None,
    corpus: Annotated[
        list[Path] | None, typer.Option(help="Dataset folder to search, by its name; repeat for more.")
    ] = None,
    split: Annotated[str, typer.Option(help="Of each --corpus.")] = "test",
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option()] = 8000,
) -> None:
    """Serve the trained agent, until interrupted. Further models: serve.models.NAME=CHECKPOINT."""
    named = [f"serve.corpora.{folder.name}={{root: {folder}, split: {split}}}" for folder in corpus or []]
    settings = read_settings(config, [f"model.policy={checkpoint}", *named, *(overrides or [])], False)
    keep_ray_local(settings.cluster.address)
    from pipelines.service.deploy import serve_agent

    guarded(serve_agent, settings, host, port)


@app.command("swap")
def swap_command(
    name: Annotated[str, typer.Argument(help="Of the served model.")],
    checkpoint: Annotated[Path, typer.Argument(help="Whose weights it is to have, of the same architecture.")],
    address: Annotated[str, typer.Option(help="Of the Ray that serves, as `vsr1 serve` prints it.")] = "auto",
) -> None:
    """Give a served model new weights while it goes on answering. Ray's token lets you in: docs/cluster.md."""
    from pipelines.service.swap import swap

    guarded(swap, name, checkpoint, address)
    console.print(f"{name} answers with {checkpoint}", soft_wrap=True)


@app.command("search")
def search_command(
    query: Annotated[str, typer.Argument(help="One sentence about one moment.")],
    url: Annotated[str, typer.Option(help="Of a running `vsr1 serve`.")] = "http://127.0.0.1:8000",
    corpus: Annotated[str | None, typer.Option(help="Its name, if several are served.")] = None,
    model: Annotated[str | None, typer.Option(help="Its name, if not the first.")] = None,
    max_turns: Annotated[int | None, typer.Option(help="Videos looked at.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="A video that it is not; repeatable.")] = None,
    key_file: Annotated[Path | None, typer.Option(help="File that holds the API key and nothing else.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The whole answer as JSON.")] = False,
) -> None:
    """Ask a running server for a moment. Exit code 3 if nothing is found."""
    from pipelines.service.client import search

    body = {"query": query, "corpus": corpus, "model": model, "max_turns": max_turns, "exclude_ids": exclude or []}
    raise typer.Exit(guarded(search, url.rstrip("/"), body, key_file, console, as_json))


@app.command("mcp")
def mcp_command(
    url: Annotated[str, typer.Option(help="Of a running `vsr1 serve`.")] = "http://127.0.0.1:8000",
    key_file: Annotated[Path | None, typer.Option(help="File that holds the API key and nothing else.")] = None,
) -> None:
    """Give an assistant the tool `search_videos` (Model Context Protocol on standard input and output)."""
    guarded(check_packages, "mcp", fix="pip install 'vsr1[mcp]'")
    from pipelines.service.mcp_tool import run_tool

    guarded(run_tool, url.rstrip("/"), key_file)


@app.command("key")
def key_command(
    name: Annotated[str, typer.Argument(help="Whose key it is.")],
    file: Annotated[Path, typer.Option(help="serve.key_file of the server.")],
    per_minute: Annotated[int, typer.Option(help="Requests a minute.")] = 120,
    at_once: Annotated[int, typer.Option(help="Requests at one time.")] = 16,
) -> None:
    """Make an API key for `vsr1 serve`. It is shown once; the file keeps its hash."""
    from pipelines.service.keys import add_key

    print(guarded(add_key, file, name, per_minute, at_once))


@app.command("retriever")
def retriever_command(
    overrides: Overrides = None,
    config: ConfigFile = None,
    split: Annotated[str, typer.Option(help="Whose corpus is searched.")] = "test",
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option()] = 8000,
) -> None:
    """Serve the search over a split as POST /retrieve, until interrupted."""
    settings = read_settings(config, overrides, False)
    from pipelines.retriever import serve_retriever

    guarded(serve_retriever, settings, split, host, port)


@data_app.command("toy")
def data_toy(
    out: Annotated[Path, typer.Option(help="Dataset folder to write.")],
    train: Annotated[int, typer.Option(help="Videos in the training split.")] = 96,
    test: Annotated[int, typer.Option(help="Videos in the test split.")] = 48,
    val: Annotated[int, typer.Option(help="Videos in the validation split; 0 leaves it out.")] = 0,
    queries: Annotated[int, typer.Option(min=1, help="Queries of each training video.")] = 1,
    seed: Annotated[int, typer.Option(help="Same seed, same corpus.")] = 0,
) -> None:
    """Render the toy corpus: H.264 videos and their annotations."""
    from vsr1.toy.corpus import write_toy_corpus

    guarded(write_toy_corpus, out, train, test, seed, val=val, queries=queries)
    console.print(f"{train} training, {val} validation and {test} test videos in {out}")


@data_app.command("build")
def data_build(overrides: Overrides = None, config: ConfigFile = None) -> None:
    """Build the dataset folder: clips, embeddings, index, training records."""
    settings = read_settings(config, overrides, False)
    from pipelines.data.build import build_dataset
    from pipelines.services import connect

    connect(settings)
    report = guarded(build_dataset, settings, progress=console.print)
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

    guarded(unpack_prepared, source, out, split, workers, console.print)


@data_app.command("check")
def data_check(
    overrides: Overrides = None,
    config: ConfigFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
) -> None:
    """Before a build: which videos are missing, do not decode, or are not as long as annotated. Exit code 1 if any."""
    settings = read_settings(config, overrides, False)
    from pipelines.data.check import check_dataset, check_table

    checks = guarded(check_dataset, settings, console.print if not as_json else None)
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
    policy_steps: Annotated[int, typer.Option(help="Optimiser steps of the policy.")] = 2500,
    embedder_steps: Annotated[int, typer.Option(help="Optimiser steps of the embedder.")] = 750,
    corpora: Annotated[int, typer.Option(help="Corpora of 2,048 films to train on.")] = 12,
) -> None:
    """Train the toy policy and embedder from random weights."""
    from vsr1.toy.pretrain import pretrain

    guarded(pretrain, out, seed, device, policy_steps, embedder_steps, corpora)


@toy_app.command("rewrites")
def toy_rewrites(overrides: Overrides = None, config: ConfigFile = None) -> None:
    """Write the texts that `agent.refinement=text` learns from, for the toy corpus in data.root."""
    settings = read_settings(config, overrides, False)
    from pipelines.toy_rewrites import write_rewrites

    console.print(f"{guarded(write_rewrites, settings)} texts")


@toy_app.command("bench")
def toy_bench(
    overrides: Overrides = None,
    config: ConfigFile = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0, 1, ... of everything.")] = 3,
    at_once: Annotated[int, typer.Option(min=1, help="Runs at one time; they share the GPUs.")] = 1,
    arms: Annotated[str | None, typer.Option(help="As in full,text; empty string: Stage 1 only. Default: all.")] = None,
) -> None:
    """Stage 1, its evaluation and every arm of the toy benchmark, each a run of its own; prints the tables."""
    import torch

    from pipelines.toy_bench import Bench, arm_names, bench

    shared = Bench(tuple(config or []), tuple(overrides or []), at_once, torch.cuda.device_count(), console.print)
    chosen = arm_names() if arms is None else [arm for arm in arms.split(",") if arm]
    print(guarded(bench, shared, chosen, seeds))


@toy_app.command("results")
def toy_results(
    folder: Annotated[Path, typer.Argument(help="Folder of run folders, each named ARM-SEED.")],
) -> None:
    """Mean and spread over seeds of evaluated runs, as Markdown tables."""
    from pipelines.toy_results import results

    print(guarded(results, folder))


if __name__ == "__main__":
    app()
