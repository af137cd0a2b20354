"""Commands about what an agent can do: `vsr1 eval`, `score`, `export`, `report` and `replay`."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

import typer

from pipelines.command import ConfigFile, DryRun, Overrides, console, guarded, read_settings, run_stage

Format = Annotated[Literal["tvr", "moment-detr"], typer.Option("--format", help="Whose file format.")]
Tolerate = Annotated[bool, typer.Option("--tolerate", help="Go on without the rows that are wrong; exit code 0.")]

commands = typer.Typer()


@commands.command("eval")
def eval_command(overrides: Overrides = None, config: ConfigFile = None, dry_run: DryRun = False) -> None:
    """Run the agent over a split and print the metrics."""
    settings = read_settings(config, overrides, dry_run)
    from pipelines.evaluation.evaluate import evaluate
    from pipelines.evaluation.score import show_summary

    summary, _ = run_stage(evaluate, settings)
    show_summary(console, settings.eval.split, summary)
    console.print(f"rows: {settings.run_dir / 'eval.jsonl'}", soft_wrap=True)


@commands.command("score")
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
        found = [str(problem) for problem in problems]
        print(json.dumps(summary.to_json() | {"problems": found}, ensure_ascii=False, indent=2))
    else:
        show_summary(console, predictions.name, summary)
    show_problems(problems)
    raise typer.Exit(int(bool(problems) and not tolerate))


@commands.command("export")
def export_command(
    predictions: Annotated[Path, typer.Argument(help="Rows of `vsr1 eval`.")],
    out: Annotated[Path, typer.Option(help="File to write, for the evaluator that --format names.")],
    form: Format = "tvr",
    ground_truth_out: Annotated[Path | None, typer.Option(help="The ground-truth file that belongs to it.")] = None,
    tolerate: Tolerate = False,
) -> None:
    """Write ranked moments for the evaluator of TVR or Moment-DETR."""
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
    out: Annotated[Path | None, typer.Option(help="File to write; report.html of the first run if left out.")] = None,
    data: Annotated[Path | None, typer.Option(help="Dataset folder, if not where the run had it.")] = None,
    frames: Annotated[bool, typer.Option(help="Show frames of the videos, which needs the dataset.")] = True,
) -> None:
    """One HTML page of runs, readable without a server: metrics, curves, every trajectory."""
    from pipelines.evaluation.report import write_run_report

    console.print(f"report: {guarded(write_run_report, runs, out, data=data, with_frames=frames)}", soft_wrap=True)


@commands.command("replay")
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
    from pipelines.evaluation.replay.command import TOLERANCES, replay
    from pipelines.evaluation.replay.stages import Tolerances
    from vsr1.runs.folder import config_of

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
