"""`vsr1 doctor`: whether this machine can run the system."""

from __future__ import annotations

import typer

from pipelines.command import ConfigFile, Overrides, read_settings

commands = typer.Typer()


@commands.command()
def doctor(overrides: Overrides = None, config: ConfigFile = None) -> None:
    """Check versions, hardware, disk and that every part starts here; each failure comes with a fix."""
    from pipelines.machine.doctor import doctor as check

    raise typer.Exit(check(read_settings(config, overrides, False)))
