"""Commands that make and build datasets: `vsr1 data ...`."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from pipelines.command import ConfigFile, Overrides, console, guarded, keep_console, read_settings, stoppable

commands = typer.Typer(no_args_is_help=True, help="Make, build, unpack and check datasets.")
announce = partial(console.print, soft_wrap=True)


@commands.command("toy")
def data_toy(
    out: Annotated[Path, typer.Option(help="Dataset folder to write.")],
    train: Annotated[int, typer.Option(help="How many videos the training split has.")] = 96,
    test: Annotated[int, typer.Option(help="How many videos the test split has.")] = 48,
    val: Annotated[int, typer.Option(help="How many videos the validation split has; 0 leaves it out.")] = 0,
    queries: Annotated[int, typer.Option(min=1, help="How many queries each training video has.")] = 1,
    seed: Annotated[int, typer.Option(help="The same seed gives the same corpus.")] = 0,
) -> None:
    """Render the toy corpus: H.264 videos and their annotations."""
    from vsr1.toy.corpus import write_toy_corpus

    guarded(write_toy_corpus, out, train, test, seed, val=val, queries=queries)
    console.print(f"{train} training, {val} validation and {test} test videos in {out}", soft_wrap=True)


@commands.command("build")
def data_build(overrides: Overrides = None, config: ConfigFile = None) -> None:
    """Build a dataset folder: clips, embeddings, index and training records; of the toy world its videos too."""
    settings = read_settings(config, overrides)
    from pipelines.data.build import build_dataset, ensure_world
    from pipelines.stage.connection import connect
    from vsr1.environments.registry import environment_of

    keep_console(settings)
    with stoppable(lambda: f"what is finished is kept in {settings.data.root}, and the same command goes on from it"):
        guarded(ensure_world, settings)
        if not environment_of(settings).has_corpus:
            announce(f"environment: {settings.environment} searches nothing, so {settings.data.root} is complete")
            return
        guarded(connect, settings)
        report = guarded(build_dataset, settings, progress=announce)
    console.print(report.table())
    console.print(report.line(), soft_wrap=True)


@commands.command("convert")
def data_convert(
    source: Annotated[Path, typer.Argument(help="Annotations of Charades-STA, DiDeMo, ActivityNet or QVHighlights.")],
    out: Annotated[Path, typer.Argument(help="File of JSON lines to write, for data.annotations.")],
    videos: Annotated[Path, typer.Option(help="Folder of the videos, for lengths that the annotations lack.")],
) -> None:
    """Convert the annotation file of another corpus."""
    from pipelines.data.convert import convert

    console.print(f"{guarded(convert, source, videos, out)} rows in {out}", soft_wrap=True)


@commands.command("unpack")
def data_unpack(
    source: Annotated[Path, typer.Argument(help="Downloaded folder with manifest.json, shards and parts.")],
    out: Annotated[Path, typer.Option(help="Dataset folder to fill.")],
    split: Annotated[list[str], typer.Option(help="Split that must be there; repeatable.")] = ["train", "test"],  # noqa: B006
    workers: Annotated[int, typer.Option(help="How many shards are unpacked at one time.")] = 4,
) -> None:
    """Unpack published data and check that the dataset folder is complete. Once stopped, it goes on where it was."""
    from pipelines.data.check_folder import check_folder
    from vsr1.formats.dataset import DatasetFolder
    from vsr1.formats.prepared import unpack_dataset

    with stoppable(lambda: f"shards that are unpacked stay in {out}, and the same command goes on from them"):
        console.print(guarded(unpack_dataset, source, out, workers, announce).line(), soft_wrap=True)
    guarded(check_folder, DatasetFolder(out), split, announce)


@commands.command("check")
def data_check(
    overrides: Overrides = None,
    config: ConfigFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Find videos that are missing, do not decode or are not as long as annotated. The exit code is 1 if any is.

    Where the dataset has been built, it says too which stages of training its records are enough for.
    """
    settings = read_settings(config, overrides)
    from pipelines.data.check_folder import StagesCheck
    from pipelines.data.check_videos import check_table, check_videos
    from vsr1.formats.dataset import DatasetFolder

    with stoppable(lambda: "nothing was written"):
        checks = guarded(check_videos, settings, announce if not as_json else None)
    if as_json:
        print(json.dumps({check.split: asdict(check) for check in checks}, ensure_ascii=False, indent=2))
    else:
        console.print(check_table(checks))
        for line in (line for check in checks for line in check.lines()):
            announce(line)
        stages = StagesCheck(DatasetFolder(settings.data.root))
        if stages.is_enough:
            announce(stages.line())
    raise typer.Exit(int(any(check.wrong for check in checks)))
