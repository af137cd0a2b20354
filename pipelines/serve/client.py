"""`vsr1 search` and `vsr1 ask`: ask a running server, and show the turns as they come."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import anyio
import httpx2
from rich.console import Console
from rich.table import Table

LIMIT_S = 300.0  # between two pieces of the answer; the server's own limit is shorter
LAST_WORD_S = 2.0  # for the request that ends a search
NOT_FOUND = 3  # exit code


class SearchError(RuntimeError):
    """The server cannot be reached or refused; the message says why."""


def read_key(file: Path | None) -> str | None:
    """Read the key of a file that holds nothing else; None without a file."""
    return file.read_text(encoding="utf-8").strip() if file else None


async def stream_search(
    url: str, body: dict[str, Any], key: str | None, path: str = "/v1/search"
) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the events of a search, or of a question, the last of type `done`; who stops reading before ends it.

    Raises:
        SearchError: no answer, a refusal, or an `error` event.
    """
    headers = {"X-API-Key": key} if key else {}
    try:
        async with (
            httpx2.AsyncClient(base_url=url, headers=headers, timeout=LIMIT_S) as client,
            client.stream("POST", path, json=body | {"stream": True}) as answer,
        ):
            if answer.status_code != 200:
                await answer.aread()
                raise SearchError(f"{url} answered {answer.status_code}: {_message(answer.text)}")
            event: dict[str, Any] = {"type": ""}
            try:
                async for message in httpx2.EventSource(answer, max_event_size=None):
                    event = json.loads(message.data)
                    if event["type"] == "error":
                        raise SearchError(f"{event['code']}: {event['message']}")
                    yield event
                    if event["type"] == "done":
                        return
            finally:
                if event["type"] not in ("done", "error"):
                    with anyio.move_on_after(LAST_WORD_S, shield=True), suppress(httpx2.HTTPError):
                        await client.delete(f"/v1/search/{answer.headers['x-search-id']}")
    except (httpx2.HTTPError, ValueError) as error:
        raise SearchError(f"{url} does not answer ({error}); is `vsr1 serve` running there?") from error
    raise SearchError(f"{url} ended the search without an answer; try again")


def search(url: str, body: dict[str, Any], key_file: Path | None, console: Console, as_json: bool) -> int:
    """Print the answer, and return the exit code: 0 for a match, else `NOT_FOUND`."""
    result = _followed(stream_search(url, body, read_key(key_file)), None if as_json else console)
    if as_json:
        print(json.dumps(result, ensure_ascii=False, indent=2))
    elif result["moments"]:
        table = Table("video", "from", "to", "score")
        for moment in result["moments"]:
            times = (f"{moment[name]:.1f} s" for name in ("start", "end"))
            table.add_row(moment["video_id"], *times, f"{moment['score']:.3f}")
        console.print(table)
    else:
        console.print("nothing matches" if result["status"] == "not_found" else "no match within the time limit")
    return 0 if result["status"] == "matched" else NOT_FOUND


def ask(url: str, body: dict[str, Any], key_file: Path | None, console: Console, as_json: bool) -> int:
    """Print the answer to a question about one film, and return the exit code: 0 for an answer, else `NOT_FOUND`."""
    result = _followed(stream_search(url, body, read_key(key_file), "/v1/ask"), None if as_json else console)
    if as_json:
        print(json.dumps(result, ensure_ascii=False, indent=2))
    else:
        console.print(result["answer"] or result["status"].replace("_", " "), markup=False)
        console.print(f"{result['spent']:g} of {result['budget']:g} spent", markup=False)
    return 0 if result["status"] == "answered" else NOT_FOUND


def _followed(events: AsyncGenerator[dict[str, Any], None], console: Console | None) -> dict[str, Any]:
    """Return the result of a run, and print what happens meanwhile where there is a console."""

    async def turns() -> dict[str, Any]:
        event: dict[str, Any] = {}
        async with aclosing(events):
            async for event in events:
                if event["type"] == "called" and console:
                    part = "" if event["start"] is None else f" {event['start']:.0f}-{event['end']:.0f} s"
                    words = f"{event['tool'] or 'no call'}{part} {event['words']}".rstrip()
                    console.print(
                        f"turn {event['turn']}: {words}: {event['status']}, {event['left']:g} left", markup=False
                    )
                if event["type"] == "verdict" and console:
                    console.print(f"turn {event['turn']}: {event['video_id']}: {event['verdict']}", markup=False)
        result: dict[str, Any] = event["result"]
        return result

    return asyncio.run(turns())


def _message(text: str) -> str:
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return text[:200]
