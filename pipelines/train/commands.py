"""Commands that train: `vsr1 sft` and `vsr1 grpo`."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Literal

import typer

from pipelines.command import ConfigFile, DryRun, Overrides, console, read_settings, run_stage
from vsr1.storage import named

commands = typer.Typer()


@commands.command("sft")
def sft_command(overrides: Overrides = None, config: ConfigFile = None, dry_run: DryRun = False) -> None:
    """Train Stage 1: replies by example, and refined queries by the retrieval loss."""
    settings = read_settings(config, overrides, dry_run and "sft", lambda settings: _stage("sft").check(settings))
    console.print(f"checkpoint: {named(run_stage(_stage('sft').train, settings))}", soft_wrap=True)


@commands.command("grpo")
def grpo_command(overrides: Overrides = None, config: ConfigFile = None, dry_run: DryRun = False) -> None:
    """Train Stage 2: GRPO on the live loop of searches, rewards and new weights."""
    settings = read_settings(config, overrides, dry_run and "grpo", lambda settings: _stage("grpo").check(settings))
    console.print(f"checkpoint: {named(run_stage(_stage('grpo').train, settings))}", soft_wrap=True)


def _stage(name: Literal["sft", "grpo"]) -> Any:
    """Return the module of a stage, which imports Ray: a mistake in the settings is told before that."""
    return import_module(f"pipelines.train.{name}")
