"""`vsr1 mcp`: the tool `search_videos` for assistants, by the Model Context Protocol over standard input and output.

It asks a running server by its HTTP API. So it works with every client that can start a command, needs no Ray on the
client's machine, and comes under the server's keys and limits; nothing is mounted into the gateway.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Annotated

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import BaseModel, Field

from pipelines.serve.client import SearchError, read_key, stream_search
from pipelines.serve.gateway.schema import LONGEST_QUERY, Moment, Status

SIGN_S = 10.0  # assistants give a call up after a minute without a sign


class Findings(BaseModel):
    """The answer of the tool; `moments` is empty unless the status is `matched`."""

    status: Status
    moments: list[Moment]


def search_tool(url: str, key_file: Path | None) -> MCPServer:
    """Return the MCP server with the one tool, which asks the server at `url`."""
    key = read_key(key_file)
    server = MCPServer("vsr1", instructions="Finds the video and the seconds of a moment that one sentence describes.")

    @server.tool()
    async def search_videos(
        context: Context,
        query: Annotated[str, Field(min_length=1, max_length=LONGEST_QUERY, description="what happens in the moment")],
        corpus: Annotated[str | None, Field(description="may be left out where there is only one")] = None,
        max_turns: Annotated[int | None, Field(ge=1, le=16, description="videos looked at")] = None,
        exclude_ids: Annotated[list[str] | None, Field(description="videos that it is not")] = None,
    ) -> Findings:
        """Find one moment in a corpus of videos: the video's id, start and end in seconds, and links to see it."""
        body = {"query": query, "corpus": corpus, "max_turns": max_turns, "exclude_ids": exclude_ids or []}
        try:
            # A call that is cancelled ends its search.
            async with _signs_of_life(context), aclosing(stream_search(url, body, key)) as events:
                last = [event async for event in events][-1]
        except SearchError as error:
            raise ToolError(str(error)) from error
        findings = Findings.model_validate({name: last["result"][name] for name in ("status", "moments")})
        for moment in findings.moments:
            moment.thumbnail_url, moment.deep_link = url + moment.thumbnail_url, url + moment.deep_link
        return findings

    return server


@asynccontextmanager
async def _signs_of_life(context: Context) -> AsyncIterator[None]:
    """Report progress while the block runs, to an assistant that asks for it: a search may wait, and look at many."""

    async def tell() -> None:
        for number in count(1):
            await asyncio.sleep(SIGN_S)
            await context.report_progress(number, message=f"searching for {number * SIGN_S:g} s")

    signs = asyncio.create_task(tell())
    try:
        yield
    finally:
        signs.cancel()


def run_tool(url: str, key_file: Path | None) -> None:
    """Answer on standard input and output until the client closes them, or Ctrl-C ends this process at once."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a thread waits for input, and an exception would wait for it
    search_tool(url, key_file).run("stdio")
