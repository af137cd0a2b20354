"""`vsr1 doctor`: whether this machine can run the system."""

from __future__ import annotations

import typer

from pipelines.command import ConfigFile, Overrides, console, read_settings

commands = typer.Typer()


@commands.command()
def doctor(overrides: Overrides = None, config: ConfigFile = None) -> None:
    """Check versions, hardware, disk, ports and that every part starts on this machine. Each failure comes with a fix;
    the exit code is 1 if there is any."""
    settings = read_settings(config, overrides)
    from pipelines.machine.doctor import doctor as check

    raise typer.Exit(check(settings, console))
