"""`vsr1 demo`: the whole system once on the toy corpus."""

from __future__ import annotations

from pathlib import Path

import typer

from pipelines.command import ConfigFile, DryRun, Overrides, console, guarded, read_settings, stoppable
from vsr1.runs.folder import kept_in

DEMO_CONFIG = [Path(__file__).parents[2] / "configs" / "toy.yaml"]

commands = typer.Typer()


@commands.command()
def demo(overrides: Overrides = None, config: ConfigFile = DEMO_CONFIG, dry_run: DryRun = False) -> None:
    """Run the whole system once on a toy corpus: build data, train both stages, evaluate and write the report."""
    settings = read_settings(config, overrides, dry_run and "demo")
    from pipelines.toy.demo import run_demo

    with stoppable(lambda: kept_in(settings.run_dir), settings.fleet.stop_s):
        console.print(f"report: {guarded(run_demo, settings, console)}")
