"""Commands that train: `vsr1 sft` and `vsr1 grpo`."""

from __future__ import annotations

import typer

from pipelines.command import ConfigFile, DryRun, Overrides, console, read_settings, run_stage

commands = typer.Typer()


@commands.command("sft")
def sft_command(overrides: Overrides = None, config: ConfigFile = None, dry_run: DryRun = False) -> None:
    """Train Stage 1: replies by example, and refined queries by the retrieval loss."""
    settings = read_settings(config, overrides, dry_run and "sft")
    from pipelines.train.sft import train

    console.print(f"checkpoint: {run_stage(train, settings)}")


@commands.command("grpo")
def grpo_command(overrides: Overrides = None, config: ConfigFile = None, dry_run: DryRun = False) -> None:
    """Train Stage 2: GRPO on the live loop of searches, rewards and new weights."""
    settings = read_settings(config, overrides, dry_run and "grpo")
    from pipelines.train.grpo import train

    console.print(f"checkpoint: {run_stage(train, settings)}")
