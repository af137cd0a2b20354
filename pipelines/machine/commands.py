"""`vsr1 doctor`: whether this machine can run the system."""

from __future__ import annotations

import typer

from pipelines.command import ConfigFile, Overrides, console, read_settings

commands = typer.Typer()


@commands.command()
def doctor(overrides: Overrides = None, config: ConfigFile = None) -> None:
    """Check that every part works on this machine, with a fix for each that does not; then the exit code is 1."""
    settings = read_settings(config, overrides)
    from pipelines.machine.doctor import doctor as check

    raise typer.Exit(check(settings, console))
