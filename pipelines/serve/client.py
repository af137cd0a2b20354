"""`vsr1 search`: ask a running server, and show the turns as they come."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
from rich.console import Console
from rich.table import Table

LIMIT_S = 300.0  # between two pieces of the answer; the server's own limit is shorter
NOT_FOUND = 3  # exit code


class SearchError(RuntimeError):
    """The server cannot be reached or refused; the message says why."""


def read_key(file: Path | None) -> str | None:
    """Read the key of a file that holds nothing else; None without a file."""
    return file.read_text(encoding="utf-8").strip() if file else None


def stream_search(url: str, body: dict[str, Any], key: str | None = None) -> Iterator[dict[str, Any]]:
    """Yield the events of a search, the last of type `done`.

    Raises:
        SearchError: no answer, a refusal, or an `error` event.
    """
    try:
        headers = {"X-API-Key": key} if key else {}
        streamed = body | {"stream": True}
        with httpx2.stream("POST", f"{url}/v1/search", json=streamed, headers=headers, timeout=LIMIT_S) as answer:
            if answer.status_code != 200:
                answer.read()
                raise SearchError(f"{url} answered {answer.status_code}: {_message(answer.text)}")
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    event = json.loads(line.removeprefix("data: "))
                    if event["type"] == "error":
                        raise SearchError(f"{event['code']}: {event['message']}")
                    yield event
                    if event["type"] == "done":
                        return
    except httpx2.HTTPError as error:
        raise SearchError(f"{url} does not answer ({error}); is `vsr1 serve` running there?") from error
    raise SearchError(f"{url} ended the search without an answer; try again")


def search(url: str, body: dict[str, Any], key_file: Path | None, console: Console, as_json: bool) -> int:
    """Print the answer, and return the exit code: 0 for a match, else `NOT_FOUND`."""
    key = read_key(key_file)
    result: dict[str, Any] = {}
    for event in stream_search(url, body, key):
        if event["type"] == "done":
            result = event["result"]
        elif event["type"] == "verdict" and not as_json:
            console.print(f"turn {event['turn']}: {event['video_id']}: {event['verdict']}", markup=False)
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


def _message(text: str) -> str:
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return text[:200]
