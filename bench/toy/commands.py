"""`python -m bench toy ...`: the toy benchmark and the models that it starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.command import ConfigFile, Overrides, console, guarded, read_settings

commands = typer.Typer(no_args_is_help=True, help="Run the toy benchmark, or make the models that it starts from.")


@commands.command()
def pretrain(
    out: Annotated[Path, typer.Option(help="Folder for policy/ and embedder/.")],
    seed: Annotated[int, typer.Option(help="Seed of the films, the weights and the batches.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    policy_steps: Annotated[int, typer.Option(help="Optimiser steps of the policy.")] = 2500,
    embedder_steps: Annotated[int, typer.Option(help="Optimiser steps of the embedder.")] = 750,
    corpora: Annotated[int, typer.Option(help="Corpora of 2,048 films to train on.")] = 12,
    start: Annotated[
        Path | None, typer.Option(help="Folder of a policy/ and an embedder/; the one of no steps is taken from it.")
    ] = None,
) -> None:
    """Train the toy policy and embedder from random weights."""
    from bench.toy.pretrain import pretrain

    guarded(pretrain, out, seed, device, policy_steps, embedder_steps, corpora, start)


@commands.command()
def rewrites(overrides: Overrides = None, config: ConfigFile = None) -> None:
    """Write the texts that `agent.refinement=text` learns from, for the toy corpus in data.root."""
    settings = read_settings(config, overrides, False)
    from bench.toy.rewrites import write_rewrites

    console.print(f"{guarded(write_rewrites, settings)} texts are written")


@commands.command()
def data(overrides: Overrides = None, config: ConfigFile = None) -> None:
    """Render and build the corpus that `toy` describes in data.root."""
    settings = read_settings(config, overrides, False)
    from bench.toy.experiment import make_data

    guarded(make_data, settings)


@commands.command()
def run(
    overrides: Overrides = None,
    config: ConfigFile = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds of weights and batches.")] = 3,
    first_seed: Annotated[int, typer.Option(min=0, help="The first of them.")] = 0,
    at_once: Annotated[int, typer.Option(min=1, help="Runs at one time; they share the GPUs.")] = 1,
    arms: Annotated[
        str | None, typer.Option(help="As in full,infonce+black; empty string: Stage 1 only. Default: all.")
    ] = None,
    splits: Annotated[str, typer.Option(help="Further splits to evaluate on, as in hard,val.")] = "",
) -> None:
    """Make models, corpora, Stage 1, its evaluation and every arm, each a run of its own, and print the tables."""
    import torch

    from bench.toy.experiment import Bench, arm_names, bench

    shared = Bench(tuple(config or []), tuple(overrides or []), at_once, torch.cuda.device_count(), console.print)
    chosen = arm_names() if arms is None else [arm for arm in arms.split(",") if arm]
    further = tuple(split for split in splits.split(",") if split)
    print(guarded(bench, shared, chosen, range(first_seed, first_seed + seeds), further))


@commands.command()
def results(folder: Annotated[Path, typer.Argument(help="Folder of run folders, each named ARM-SEED.")]) -> None:
    """Print mean and spread over seeds of evaluated runs, as Markdown tables."""
    from bench.toy.results import results

    print(guarded(results, folder))
