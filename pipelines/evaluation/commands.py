"""Commands about what an agent can do: `vsr1 eval`, `score`, `export`, `report` and `replay`."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

import typer

from pipelines.command import ConfigFile, DryRun, Overrides, console, guarded, keep_console, read_settings, run_stage
from vsr1.storage import named

Format = Annotated[Literal["tvr", "moment-detr"], typer.Option("--format", help="Evaluator whose file format is used.")]
Tolerate = Annotated[bool, typer.Option("--tolerate", help="Leave out rows that are wrong and end with exit code 0.")]

commands = typer.Typer()


@commands.command("eval")
def eval_command(overrides: Overrides = None, config: ConfigFile = None, dry_run: DryRun = False) -> None:
    """Play the agent over every query of a split and print its metrics."""
    settings = read_settings(config, overrides, dry_run and "eval")
    from pipelines.evaluation.evaluate import evaluate
    from pipelines.evaluation.score import show_summary

    summary, _ = run_stage(evaluate, settings)
    show_summary(console, settings.eval.split, summary)
    console.print(f"rows: {named(settings.run_dir / 'eval.jsonl')}", soft_wrap=True)


@commands.command("score")
def score_command(
    predictions: Annotated[Path, typer.Argument(help="Rows of `vsr1 eval` or of the published evaluator, or a list.")],
    annotations: Annotated[
        Path | None, typer.Option(help="Raw annotations; rows of other queries are refused.")
    ] = None,
    ground_truth: Annotated[Path | None, typer.Option(help="Ground truth of predictions in --format.")] = None,
    form: Format = "tvr",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
    published: Annotated[bool, typer.Option("--published", help="Print the published summary as JSON.")] = False,
    tolerate: Tolerate = False,
) -> None:
    """Compute the metrics of a file of predictions, without a model. The exit code is 1 if a row is wrong."""
    from pipelines.evaluation.score import score_predictions, show_problems, show_summary
    from vsr1.metrics.exchange import score_exchange
    from vsr1.metrics.published import published_summary

    if ground_truth is not None:
        print(json.dumps(guarded(score_exchange, predictions, ground_truth, form), indent=2))
        return
    summary, problems, rows = guarded(score_predictions, predictions, annotations)
    if published:
        print(json.dumps(published_summary(rows), ensure_ascii=False, indent=2))
    elif as_json:
        lines = [str(problem) for problem in problems]
        print(json.dumps(summary.to_json() | {"problems": lines}, ensure_ascii=False, indent=2))
    else:
        show_summary(console, predictions.name, summary)
    show_problems(problems)
    raise typer.Exit(int(bool(problems) and not tolerate))


@commands.command("export")
def export_command(
    predictions: Annotated[Path, typer.Argument(help="File with the rows of `vsr1 eval`.")],
    out: Annotated[Path, typer.Option(help="File to write for the evaluator that --format names.")],
    form: Format = "tvr",
    ground_truth_out: Annotated[Path | None, typer.Option(help="Also write the ground truth there.")] = None,
    tolerate: Tolerate = False,
) -> None:
    """Write the ranked moments of an evaluation for the evaluator of TVR or Moment-DETR."""
    from pipelines.evaluation.score import export_predictions, show_problems

    problems, count = guarded(export_predictions, predictions, form, out, ground_truth_out, tolerate)
    show_problems(problems)
    if problems and not tolerate:
        console.print("nothing was written; --tolerate leaves these rows out", style="red")
        raise typer.Exit(1)
    console.print(f"{count} queries in {out}")


@commands.command("report")
def report_command(
    runs: Annotated[list[Path], typer.Argument(help="Run folders; several are shown side by side.")],
    out: Annotated[Path | None, typer.Option(help="File to write; else report.html of the first run.")] = None,
    data: Annotated[Path | None, typer.Option(help="Dataset folder, if it has moved since the run.")] = None,
    frames: Annotated[bool, typer.Option(help="Show frames of the videos; this needs the dataset.")] = True,
) -> None:
    """Write one HTML page about runs, readable without a server: metrics, curves and every trajectory."""
    from pipelines.evaluation.report import write_run_report

    console.print(f"report: {guarded(write_run_report, runs, out, data=data, with_frames=frames)}", soft_wrap=True)


@commands.command("replay")
def replay_command(
    file: Annotated[Path, typer.Argument(help="train_trajectories.jsonl or NAME.trajectories.jsonl of a run folder.")],
    overrides: Overrides = None,
    config: Annotated[
        list[Path] | None, typer.Option("--config", "-c", help="YAML file to use instead of the one beside FILE.")
    ] = None,
    query: Annotated[str | None, typer.Option(help="Take only the query with this id.")] = None,
    sample: Annotated[int | None, typer.Option(help="Take only this sample of each query.")] = None,
    step: Annotated[int | None, typer.Option(help="Take only this training step.")] = None,
    rerun: Annotated[bool, typer.Option("--rerun", help="Also play an evaluation again, on Ray.")] = False,
    score_tolerance: Annotated[float | None, typer.Option(help="Tolerance of search scores; 1e-4 in float32.")] = None,
    logprob_tolerance: Annotated[
        float | None, typer.Option(help="Tolerance of log-probs and losses; 1e-3 in float32.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list instead of tables.")] = False,
) -> None:
    """Recompute recorded trajectories stage by stage and name the first stage that differs; then the exit code is 1."""
    from pipelines.evaluation.replay.command import replay
    from vsr1.runs.folder import config_of

    settings = read_settings(config or [guarded(config_of, file)], overrides)
    if rerun:  # on Ray, whose actors write into the run folder too
        keep_console(settings)
    tolerances = {"score_tolerance": score_tolerance, "logprob_tolerance": logprob_tolerance}
    results = guarded(replay, file, settings, query=query, sample=sample, step=step, rerun=rerun, **tolerances)
    different = [result for result in results if result.first]
    if as_json:
        print(json.dumps([result.to_json() for result in results], ensure_ascii=False, indent=2))
        raise typer.Exit(int(bool(different)))
    for result in results if len(results) == 1 else different:
        console.print(result.table())
    for result in different:
        finding = result.first
        console.print(f"{result.name}: {finding.stage} differs: {finding.detail}", markup=False, soft_wrap=True)
    agreeing = len(results) - len(different)
    console.print(f"{agreeing} of {len(results)} trajectories agree in every stage that was checked")
    findings = [finding for result in results for finding in result.findings if finding.status == "not checked"]
    reasons = Counter((finding.stage, finding.detail) for finding in findings)
    for (stage, reason), count in reasons.items() if len(results) > 1 else ():
        console.print(f"not checked in {count}: {stage}: {reason}", markup=False, soft_wrap=True)
    raise typer.Exit(int(bool(different)))
