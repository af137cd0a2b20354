"""Commands that make and build datasets: `vsr1 data ...`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from pipelines.command import ConfigFile, Overrides, console, guarded, read_settings

commands = typer.Typer(no_args_is_help=True, help="Make and build datasets.")


@commands.command("toy")
def data_toy(
    out: Annotated[Path, typer.Option(help="Dataset folder to write.")],
    train: Annotated[int, typer.Option(help="Videos in the training split.")] = 96,
    test: Annotated[int, typer.Option(help="Videos in the test split.")] = 48,
    val: Annotated[int, typer.Option(help="Videos in the validation split; 0 leaves it out.")] = 0,
    queries: Annotated[int, typer.Option(min=1, help="Queries of each training video.")] = 1,
    seed: Annotated[int, typer.Option(help="Same seed, same corpus.")] = 0,
) -> None:
    """Render the toy corpus: H.264 videos and their annotations."""
    from vsr1.toy.corpus import write_toy_corpus

    guarded(write_toy_corpus, out, train, test, seed, val=val, queries=queries)
    console.print(f"{train} training, {val} validation and {test} test videos in {out}")


@commands.command("build")
def data_build(overrides: Overrides = None, config: ConfigFile = None) -> None:
    """Build the dataset folder: clips, embeddings, index, training records."""
    settings = read_settings(config, overrides, False)
    from pipelines.data.build import build_dataset
    from pipelines.stage.workers import connect

    connect(settings)
    report = guarded(build_dataset, settings, progress=console.print)
    console.print(report.table())
    console.print(report.line())


@commands.command("unpack")
def data_unpack(
    source: Annotated[Path, typer.Argument(help="Downloaded folder: manifest.json, shards and parts.")],
    out: Annotated[Path, typer.Option(help="Dataset folder to fill.")],
    split: Annotated[list[str], typer.Option(help="A split it must have; repeat for more.")] = ["train", "test"],  # noqa: B006
    workers: Annotated[int, typer.Option(help="Shards unpacked at one time.")] = 4,
) -> None:
    """Unpack published data and check that the dataset folder is complete; a repeated call goes on from there."""
    from pipelines.data.check_folder import check_folder
    from vsr1.formats.dataset import DatasetFolder
    from vsr1.formats.prepared import unpack_dataset

    console.print(guarded(unpack_dataset, source, out, workers, console.print).line())
    guarded(check_folder, DatasetFolder(out), split, console.print)


@commands.command("check")
def data_check(
    overrides: Overrides = None,
    config: ConfigFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
) -> None:
    """Before a build: which videos are missing, do not decode, or are not as long as annotated. Exit code 1 if any."""
    settings = read_settings(config, overrides, False)
    from pipelines.data.check_videos import check_table, check_videos

    checks = guarded(check_videos, settings, console.print if not as_json else None)
    if as_json:
        print(json.dumps({check.split: asdict(check) for check in checks}, ensure_ascii=False, indent=2))
    else:
        console.print(check_table(checks))
        for line in (line for check in checks for line in check.lines()):
            console.print(line, markup=False, soft_wrap=True)
    raise typer.Exit(int(any(check.wrong for check in checks)))
