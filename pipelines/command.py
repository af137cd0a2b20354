"""What every command shares: its options, the settings it reads, and how it reports progress and errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from actors.logs import DRIVER_LOG, log_libraries_to
from pipelines.stage.progress import Progress, shown_progress
from vsr1.config import Config, dump_config, load_config

if TYPE_CHECKING:
    from pipelines.machine.placement import Stage

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # of transformers too, which is imported later
console = Console()

ConfigFile = Annotated[
    list[Path] | None,
    typer.Option("--config", "-c", help="YAML file with settings; of several, later ones win. Else defaults apply."),
]
Overrides = Annotated[list[str] | None, typer.Argument(help="Settings as section.key=value; later ones win.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the settings and where the actors would go, and start nothing.")
]

JOB_FOLDERS = "working_dir_files"  # where Ray unpacks the working directory of a submitted job
OWN_PACKAGES = ("vsr1", "actors", "pipelines", "bench")  # whose errors name the thing, the place and the fix


def read_settings(
    path: list[Path] | None, overrides: list[str] | None, dry_run: Stage | Literal[False] = False
) -> Config:
    """Return the settings of a command, or end it with what is wrong with them.

    Args:
        dry_run: print the settings and the placement of this stage, and end with exit code 1 if it does not fit.
    """
    settings: Config = guarded(load_config, path, overrides)
    if dry_run:
        from pipelines.machine.placement import capacity, placement_plan

        plan = placement_plan(settings, dry_run, guarded(capacity, settings))
        console.print(dump_config(settings), markup=False)
        console.print(plan.render())
        guarded(plan.check)
        raise typer.Exit
    return settings


def guarded(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call; an error that names its cause is printed in one line, any other keeps its traceback."""
    try:
        return call(*args, **kwargs)
    except Exception as error:
        cause = getattr(error, "cause", error)  # what failed inside a Ray actor
        if type(cause).__module__.split(".")[0] not in OWN_PACKAGES and not isinstance(cause, FileNotFoundError):
            raise
        stderr = Console(stderr=True)
        stderr.print(f"error: {cause}", style="red", markup=False, soft_wrap=True)
        for note in getattr(error, "__notes__", []):
            stderr.print(note, markup=False, soft_wrap=True)
        sys.exit(1)


def keep_console(settings: Config) -> None:
    """Keep the console for lines of our own: what the libraries of this process have to say goes to a file."""
    guarded(log_libraries_to, settings.run_dir / "logs" / DRIVER_LOG)


def run_stage(stage: Callable[[Config, Progress], Any], settings: Config) -> Any:
    """Call a stage, show how it goes and end as `guarded` does."""
    keep_console(settings)
    if JOB_FOLDERS in settings.run_dir.parts:
        console.print(f"{settings.run_dir} goes when Ray removes this job's files; run_dir=/PATH keeps the results")

    def stage_shown() -> Any:
        with shown_progress(console) as progress:
            return stage(settings, progress)

    return guarded(stage_shown)
