"""Commands of the served agent: `vsr1 serve`, `swap`, `search`, `mcp`, `key` and `retriever`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.command import ConfigFile, Overrides, console, guarded, read_settings
from pipelines.machine.resources import check_packages, keep_ray_local

commands = typer.Typer()


@commands.command("serve")
def serve_command(
    checkpoint: Annotated[Path, typer.Argument(help="Policy checkpoint to serve.")],
    overrides: Overrides = None,
    config: ConfigFile = None,
    corpus: Annotated[
        list[Path] | None, typer.Option(help="Dataset folder to search, by its name; repeat for more.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split of each --corpus.")] = "test",
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at.")] = 8000,
) -> None:
    """Serve the trained agent, until interrupted. Further models: serve.models.NAME=CHECKPOINT."""
    named = [f"serve.corpora.{folder.name}={{root: {folder}, split: {split}}}" for folder in corpus or []]
    settings = read_settings(config, [f"model.policy={checkpoint}", *named, *(overrides or [])], False)
    keep_ray_local(settings.cluster.address)
    from pipelines.serve.deploy import serve_agent

    guarded(serve_agent, settings, host, port)


@commands.command("swap")
def swap_command(
    name: Annotated[str, typer.Argument(help="Name of the served model.")],
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint with its new weights, of the same architecture.")],
    address: Annotated[str, typer.Option(help="Address of the Ray that serves, as `vsr1 serve` prints it.")] = "auto",
) -> None:
    """Give a served model new weights while it goes on answering. Ray's token lets you in: docs/cluster.md."""
    from pipelines.serve.swap import swap

    guarded(swap, name, checkpoint, address)
    console.print(f"{name} answers with {checkpoint}", soft_wrap=True)


@commands.command("search")
def search_command(
    query: Annotated[str, typer.Argument(help="One sentence about one moment.")],
    url: Annotated[str, typer.Option(help="Address of a running `vsr1 serve`.")] = "http://127.0.0.1:8000",
    corpus: Annotated[str | None, typer.Option(help="Name of the corpus, if several are served.")] = None,
    model: Annotated[str | None, typer.Option(help="Name of the model, if not the first.")] = None,
    max_turns: Annotated[int | None, typer.Option(help="Most videos to look at.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Id of a video that it is not; repeat for more.")] = None,
    key_file: Annotated[Path | None, typer.Option(help="File that holds the API key and nothing else.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole answer as JSON.")] = False,
) -> None:
    """Ask a running server for a moment. Exit code 3 if nothing is found."""
    from pipelines.serve.client import search

    body = {"query": query, "corpus": corpus, "model": model, "max_turns": max_turns, "exclude_ids": exclude or []}
    raise typer.Exit(guarded(search, url.rstrip("/"), body, key_file, console, as_json))


@commands.command("mcp")
def mcp_command(
    url: Annotated[str, typer.Option(help="Address of a running `vsr1 serve`.")] = "http://127.0.0.1:8000",
    key_file: Annotated[Path | None, typer.Option(help="File that holds the API key and nothing else.")] = None,
) -> None:
    """Give an assistant the tool `search_videos` (Model Context Protocol on standard input and output)."""
    guarded(check_packages, "mcp", fix="pip install 'vsr1[mcp]'")
    from pipelines.serve.mcp_tool import run_tool

    guarded(run_tool, url.rstrip("/"), key_file)


@commands.command("key")
def key_command(
    name: Annotated[str, typer.Argument(help="Name of whoever gets the key.")],
    file: Annotated[Path, typer.Option(help="File of keys, serve.key_file of the server.")],
    per_minute: Annotated[int, typer.Option(help="Most requests a minute.")] = 120,
    at_once: Annotated[int, typer.Option(help="Most requests at one time.")] = 16,
) -> None:
    """Make an API key for `vsr1 serve`. It is shown once; the file keeps its hash."""
    from pipelines.serve.gateway.keys import add_key

    print(guarded(add_key, file, name, per_minute, at_once))


@commands.command("retriever")
def retriever_command(
    overrides: Overrides = None,
    config: ConfigFile = None,
    split: Annotated[str, typer.Option(help="Split that is searched.")] = "test",
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at.")] = 8000,
) -> None:
    """Serve the search over a split as POST /retrieve, until interrupted."""
    settings = read_settings(config, overrides, False)
    from pipelines.serve.deploy import serve_retriever

    guarded(serve_retriever, settings, split, host, port)
