"""The command line: `vsr1 --help`. Every command reads YAML files and `section.key=value` overrides."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.command import ConfigFile, Overrides, console, guarded, read_settings
from pipelines.data import commands as data
from pipelines.evaluation import commands as evaluation
from pipelines.serve import commands as serve
from pipelines.submit import commands as submit
from pipelines.toy import commands as toy
from pipelines.train import commands as train

MOVED = {"bench": "python -m bench", "toy": "python -m bench toy"}  # from the repository's folder

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Train, evaluate and serve an agent that finds moments in videos.",
)
app.add_typer(toy.commands)


@app.command()
def doctor(overrides: Overrides = None, config: ConfigFile = None) -> None:
    """Check that every part works on this machine, with a fix for each that does not; then the exit code is 1."""
    settings = read_settings(config, overrides)
    from pipelines.machine.doctor import doctor as check

    raise typer.Exit(check(settings, console))


@app.command()
def scale(
    target: Annotated[str, typer.Argument(metavar="rollouts=N", help="Rollout workers that are to serve.")],
    run_dir: Annotated[Path, typer.Option("--run-dir", help="Folder of the run.")],
) -> None:
    """Give a running `vsr1 grpo` another number of rollout workers; who leaves ends its episodes first."""
    from vsr1.runs.scale import ask_scale

    console.print(guarded(ask_scale, run_dir, target), markup=False, soft_wrap=True)


for wing in (train, evaluation, serve, submit):
    app.add_typer(wing.commands)
app.add_typer(data.commands, name="data")


@app.command("bench", hidden=True, add_help_option=False, context_settings={"ignore_unknown_options": True})
@app.command("toy", hidden=True, add_help_option=False, context_settings={"ignore_unknown_options": True})
def moved(context: typer.Context, arguments: list[str] | None = typer.Argument(None)) -> None:
    """Say where a former command of `vsr1` is now."""
    name = str(context.info_name)
    typer.echo(f"error: `vsr1 {name}` is `{MOVED[name]}` now, in the folder of the repository", err=True)
    raise typer.Exit(2)
