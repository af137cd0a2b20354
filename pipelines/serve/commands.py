"""Commands of the served agent: `vsr1 serve`, `swap`, `search`, `ask`, `mcp`, `key` and `retriever`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.command import ConfigFile, DryRun, Overrides, console, guarded, keep_console, read_settings
from pipelines.machine.resources import check_packages
from pipelines.stage.connection import keep_ray_local
from vsr1.config import dump_config
from vsr1.storage import cache_at

Host = Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 lets other machines in.")]
Port = Annotated[int, typer.Option(help="Port to listen at.")]
Url = Annotated[str, typer.Option(help="Address of a running `vsr1 serve`.")]
KeyFile = Annotated[Path | None, typer.Option(help="File that holds the API key and nothing else.")]

commands = typer.Typer()


@commands.command("serve")
def serve_command(
    checkpoint: Annotated[Path, typer.Argument(help="Policy checkpoint to serve.")],
    overrides: Overrides = None,
    config: ConfigFile = None,
    corpus: Annotated[
        list[str] | None,
        typer.Option(help="Dataset folder to search, known by its name, or NAME=FOLDER; repeatable."),
    ] = None,
    split: Annotated[str, typer.Option(help="Split of each --corpus that is searched.")] = "test",
    host: Host = "127.0.0.1",
    port: Port = 8000,
    dry_run: DryRun = False,
) -> None:
    """Serve a trained agent until interrupted. serve.models.NAME=CHECKPOINT adds a model."""
    settings = read_settings(config, [f"model.policy={checkpoint}", *(overrides or [])])
    keep_ray_local(settings.cluster.address)
    from pipelines.machine.nodes import capacity
    from pipelines.serve.checks import check_served, named_corpora, serving_plan

    with cache_at(settings.storage.cache):
        settings.serve.corpora = guarded(named_corpora, corpus or [], split, settings.serve.corpora)
    if dry_run:
        console.print(dump_config(settings), soft_wrap=True)
        console.print(serving_plan(settings, True, guarded(capacity, settings)).render())
        guarded(check_served, settings)
        return
    keep_console(settings)
    from pipelines.serve.deploy import serve_agent

    guarded(serve_agent, settings, host, port)


@commands.command("swap")
def swap_command(
    name: Annotated[str, typer.Argument(help="Name of the served model.")],
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint with the new weights, of the same architecture.")],
    address: Annotated[str, typer.Option(help="Address of the Ray that serves; `vsr1 serve` prints it.")] = "auto",
) -> None:
    """Give a served model new weights while it goes on answering. You need Ray's token, see docs/cluster.md."""
    from pipelines.serve.swap import swap

    guarded(swap, name, checkpoint, address)
    console.print(f"{name} answers with {checkpoint}", soft_wrap=True)


@commands.command("search")
def search_command(
    query: Annotated[str, typer.Argument(help="A sentence about one moment.")],
    url: Url = "http://127.0.0.1:8000",
    corpus: Annotated[str | None, typer.Option(help="Name of the corpus, if several are served.")] = None,
    model: Annotated[str | None, typer.Option(help="Name of the model; the first without it.")] = None,
    max_turns: Annotated[int | None, typer.Option(help="How many videos may be looked at.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="A video that must not be found; repeatable.")] = None,
    budget: Annotated[float | None, typer.Option(help="Of calls into long videos, where they are navigated.")] = None,
    key_file: KeyFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole answer as JSON.")] = False,
) -> None:
    """Ask a running server for a moment. The exit code is 3 if it finds none."""
    from pipelines.serve.client import search

    body = {
        "query": query, "corpus": corpus, "model": model, "max_turns": max_turns, "exclude_ids": exclude or [],
        "budget": budget,
    }  # fmt: skip
    raise typer.Exit(guarded(search, url.rstrip("/"), body, key_file, console, as_json))


@commands.command("ask")
def ask_command(
    film: Annotated[str, typer.Argument(help="Id of a film.")],
    question: Annotated[str, typer.Argument(help="A question about the film.")],
    option: Annotated[list[str] | None, typer.Option(help="An answer to choose from; again for more.")] = None,
    url: Url = "http://127.0.0.1:8000",
    corpus: Annotated[str | None, typer.Option(help="Name of the corpus, if several are served.")] = None,
    model: Annotated[str | None, typer.Option(help="Name of the model; the first without it.")] = None,
    budget: Annotated[float | None, typer.Option(help="Of calls into the film; as trained without it.")] = None,
    key_file: KeyFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole answer as JSON.")] = False,
) -> None:
    """Ask a running server with environment=navigate about a film. The exit code is 3 without an answer."""
    from pipelines.serve.client import ask

    body = {"film": film, "question": question, "options": option, "corpus": corpus, "model": model, "budget": budget}
    raise typer.Exit(guarded(ask, url.rstrip("/"), body, key_file, console, as_json))


@commands.command("mcp")
def mcp_command(
    url: Url = "http://127.0.0.1:8000",
    key_file: KeyFile = None,
) -> None:
    """Offer an assistant the tool `search_videos`, by the Model Context Protocol on standard input and output."""
    guarded(check_packages, "mcp", fix="pip install 'vsr1[mcp]'")
    from pipelines.serve.mcp_tool import run_tool

    guarded(run_tool, url.rstrip("/"), key_file)


@commands.command("key")
def key_command(
    name: Annotated[str, typer.Argument(help="Name of the person or program that gets the key.")],
    file: Annotated[Path, typer.Option(help="The server's serve.key_file.")],
    per_minute: Annotated[int, typer.Option(help="How many searches and changes a minute are allowed.")] = 120,
    at_once: Annotated[int, typer.Option(help="How many of them are allowed at one time.")] = 16,
    views_per_minute: Annotated[int, typer.Option(help="How many frames, films and states a minute.")] = 2400,
) -> None:
    """Make an API key for `vsr1 serve`. The key is shown once; the file keeps its hash."""
    from pipelines.serve.gateway.keys import add_key

    print(guarded(add_key, file, name, per_minute, at_once, views_per_minute))


@commands.command("retriever")
def retriever_command(
    overrides: Overrides = None,
    config: ConfigFile = None,
    split: Annotated[str, typer.Option(help="Split that is searched.")] = "test",
    host: Host = "127.0.0.1",
    port: Port = 8000,
) -> None:
    """Serve the search over a split as POST /retrieve until interrupted."""
    settings = read_settings(config, overrides)
    keep_console(settings)
    from pipelines.serve.deploy import serve_retriever

    guarded(serve_retriever, settings, split, host, port)
