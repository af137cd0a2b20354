"""What every command shares: its options, the settings it reads, and how it reports progress and errors."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from actors.logs import DRIVER_LOG, log_libraries_to
from pipelines.stage.progress import Progress, shown_progress
from pipelines.stage.stopping import LIMIT_S, ended_by_signals
from vsr1.config import Config, dump_config, load_config
from vsr1.runs.folder import kept_in

if TYPE_CHECKING:
    from pipelines.machine.placement import Stage

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # of transformers too, which is imported later
# Ids and paths of users are printed as they are: `[..]` is no markup in them, `:x:` no picture.
console = Console(markup=False, emoji=False)
errors = Console(stderr=True, markup=False, emoji=False)

ConfigFile = Annotated[
    list[Path] | None,
    typer.Option("--config", "-c", help="YAML file with settings; of several, later ones win. Else defaults apply."),
]
Overrides = Annotated[list[str] | None, typer.Argument(help="Settings as section.key=value; later ones win.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the settings and where the actors would go, and start nothing.")
]

JOB_FOLDERS = "working_dir_files"  # where Ray unpacks the working directory of a submitted job


def read_settings(
    path: list[Path] | None,
    overrides: list[str] | None,
    dry_run: Stage | Literal[False] = False,
    check: Callable[[Config], None] = lambda settings: None,
) -> Config:
    """Return the settings of a command, or end it with what is wrong with them.

    Args:
        dry_run: print the settings and the placement of this stage, and end with exit code 1 if it cannot run.
        check: of a dry run, what else can be known of the stage before it starts.
    """
    settings: Config = guarded(load_config, path, overrides)
    if dry_run:
        from pipelines.machine.nodes import planned_capacity
        from pipelines.machine.placement import placement_plan

        plan = placement_plan(settings, dry_run, guarded(planned_capacity, settings))
        console.print(dump_config(settings), soft_wrap=True)
        console.print(plan.render())
        guarded(plan.check)
        guarded(check, settings)
        raise typer.Exit
    return settings


def guarded(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call; an error ends the command with its reason as the last line, after the traceback of one that is unknown."""
    try:
        return call(*args, **kwargs)
    except Exception as error:
        from pipelines.stage.faults import last_line, reason  # Ray is slow to import, and most commands do without it

        line = reason(error)
        if line is None:
            errors.print("".join(traceback.format_exception(error)), highlight=False, soft_wrap=True)
            line = last_line(f"{type(error).__name__}: {error}")
        else:
            for note in getattr(error, "__notes__", []):
                errors.print(note, soft_wrap=True)
        traceback.clear_frames(error.__traceback__)  # what they hold is closed while Ray is there
        errors.print(f"error: {line}", style="red", soft_wrap=True)
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

    with stoppable(lambda: kept_in(settings.run_dir), settings.fleet.stop_s):
        return guarded(stage_shown)


def stoppable(kept: Callable[[], str], limit_s: float = LIMIT_S) -> AbstractContextManager[None]:
    """Return what lets Ctrl-C and SIGTERM end this process and all that it started, with a line on what is kept."""

    def say(line: str) -> None:
        errors.print(line, highlight=False, soft_wrap=True)

    return ended_by_signals(say, kept, limit_s)
