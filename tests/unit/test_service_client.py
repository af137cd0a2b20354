"""The clients of the service: events are split as the protocol says, and who stops asking ends the search."""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
from mcp import Client

from bench.load import load
from pipelines.command import console, guarded
from pipelines.serve.client import SearchError, search, stream_search
from pipelines.serve.mcp_tool import search_tool

QUERY = "a ring\u2028moving\u2029left\u0085 now"
RESULT = {"status": "not_found", "query": QUERY, "moments": [], "turns": [], "usage": {}}
HEAD = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-Search-Id: abc\r\nConnection: close\r\n\r\n"


@asynccontextmanager
async def server(*sent: str, ends: bool = True) -> AsyncIterator[tuple[str, list[str]]]:
    """Answer every POST with these pieces of a stream; gives the address, and the first lines of the requests."""
    requests: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = (await reader.readline()).decode().strip()
        requests.append(line)
        if line.startswith("DELETE"):
            writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        else:
            for piece in (HEAD, *sent):
                writer.write(piece.encode())
                await writer.drain()
                await asyncio.sleep(0.01)
            if not ends:
                await reader.read()
                await asyncio.sleep(30)
        writer.close()

    listening = await asyncio.start_server(answer, "127.0.0.1")
    try:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}", requests
    finally:
        listening.close()


def event(**values: Any) -> str:
    return f": a search\n\nid: 1\nevent: {values['type']}\ndata: {json.dumps(values, ensure_ascii=False)}\n\n"


DONE = event(type="done", result=RESULT)


@pytest.mark.parametrize("pieces", [[DONE], [DONE.replace("\n", "\r\n")], [DONE[:60], DONE[60:]]])
def test_events_are_split_by_the_protocol(pieces: list[str]) -> None:
    async def play() -> None:
        async with server(*pieces) as (url, requests):
            events = [one async for one in stream_search(url, {"query": QUERY}, None)]
            assert events == [{"type": "done", "result": RESULT}]
            tally = await load(url, [{"query": QUERY}], 1)
            assert (len(tally.seconds), tally.wrong, dict(tally.errors)) == (1, 0, {})
            [answer] = (await search_tool(url, None).call_tool("search_videos", {"query": QUERY})).content
            assert json.loads(answer.text)["status"] == "not_found"  # type: ignore[union-attr]
            assert not [line for line in requests if line.startswith("DELETE")]

    asyncio.run(play())


def test_a_search_that_is_not_read_to_its_end_is_ended() -> None:
    async def play() -> None:
        async with server(event(type="retrieved"), ends=False) as (url, requests):
            async with aclosing(stream_search(url, {"query": QUERY}, None)) as events:
                assert (await anext(events))["type"] == "retrieved"
            assert requests[1:] == ["DELETE /v1/search/abc HTTP/1.1"]
            call = asyncio.create_task(search_tool(url, None).call_tool("search_videos", {"query": QUERY}))
            while len(requests) < 3:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            call.cancel()
            await asyncio.wait([call])
            assert requests[3:] == ["DELETE /v1/search/abc HTTP/1.1"]

    asyncio.run(play())


def test_an_assistant_sees_that_its_call_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.serve.mcp_tool.SIGN_S", 0.05)

    async def play() -> None:
        pieces = [event(type="retrieved") for _ in range(30)]
        async with server(*pieces, DONE) as (url, _), Client(search_tool(url, None)) as client:
            signs: list[tuple[float, str | None]] = []

            async def note(progress: float, total: float | None, message: str | None) -> None:
                signs.append((progress, message))

            answer = await client.call_tool("search_videos", {"query": QUERY}, progress_callback=note)
            assert answer.structured_content == {"status": "not_found", "moments": []}
            assert [number for number, _ in signs] == [*range(1, len(signs) + 1)] and len(signs) > 2
            assert str(signs[-1][1]).startswith("searching for ")
            [described] = (await client.list_tools()).tools
            assert [*described.input_schema["properties"]] == ["query", "corpus", "max_turns", "exclude_ids"]
            quiet = await client.call_tool("search_videos", {"query": QUERY})  # asks for no progress
            assert not quiet.is_error
            refused = await client.call_tool("search_videos", {"query": QUERY, "max_turns": 99})
            assert refused.is_error

    asyncio.run(play())


def test_ctrl_c_ends_the_tool_while_it_waits_for_an_assistant() -> None:
    command = [sys.executable, "-m", "pipelines", "mcp", "--url", "http://127.0.0.1:9"]
    client = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    first = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": client})
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as tool:
        assert tool.stdin and tool.stdout and tool.stderr
        tool.stdin.write(first.encode() + b"\n")
        tool.stdin.flush()
        assert b'"id":1' in tool.stdout.readline()
        tool.send_signal(signal.SIGINT)
        assert tool.wait(60) == -signal.SIGINT
        assert b"Traceback" not in tool.stderr.read()


def test_ids_are_printed_as_they_are(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    ids = ["Film [dQw4w9WgXcQ]", "a [/b] :cat: c"]

    async def events(url: str, body: dict[str, Any], key: str | None) -> AsyncIterator[dict[str, Any]]:
        yield {"type": "verdict", "turn": 1, "video_id": ids[0], "verdict": "not_matched"}
        moments = [{"video_id": name, "start": 1.0, "end": 2.0, "score": 0.5} for name in ids]
        yield {"type": "done", "result": {"status": "matched", "moments": moments}}

    monkeypatch.setattr("pipelines.serve.client.stream_search", events)
    assert search("http://nowhere", {}, None, console, as_json=False) == 0
    told = capsys.readouterr().out
    assert told.count(ids[0]) == 2 and told.count(ids[1]) == 1

    def fail() -> None:
        raise SearchError(ids[1])

    with pytest.raises(SystemExit):
        guarded(fail)
    assert capsys.readouterr().err == f"error: {ids[1]}\n"


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (event(type="error", code="busy", message="try again"), "busy: try again"),
        (event(type="retrieved"), "ended the search without an answer"),
        ("data: {half\n\n", "is `vsr1 serve` running there"),
    ],
)
def test_what_is_no_answer_is_told(sent: str, message: str) -> None:
    async def play() -> None:
        async with server(sent) as (url, _):
            async for _ in stream_search(url, {"query": QUERY}, None):
                continue

    with pytest.raises(SearchError, match=message):
        asyncio.run(play())
