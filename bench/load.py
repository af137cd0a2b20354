"""Many searches at one time against a running server, each answer compared with the one that its query gets alone."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx2
import numpy as np

LIMIT_S = 300.0  # without a byte from the server, which says something every 10 s
LOST = "lost"  # a stream that ended without `done` or `error`, or a connection that broke


@dataclass
class Tally:
    """What became of the searches of one load."""

    wall_s: float = 0.0
    seconds: list[float] = field(default_factory=list)  # of each answer, its waits after 429 not counted
    refused: int = 0  # answers 429; each such search tried again after Retry-After
    errors: Counter[str] = field(default_factory=Counter)  # by code; LOST is one
    wrong: int = 0  # answers that are not those of their query

    def to_json(self) -> dict[str, Any]:
        """Return counts, answers a second and latencies in seconds."""
        p50, p99 = np.percentile(self.seconds, [50, 99]).tolist() if self.seconds else (0.0, 0.0)
        return {
            "answers": len(self.seconds),
            "answers_per_s": len(self.seconds) / self.wall_s,
            "p50_s": p50,
            "p99_s": p99,
            "refused": self.refused,
            "lost": self.errors[LOST],
            "errors": {code: count for code, count in self.errors.items() if code != LOST},
            "wrong": self.wrong,
        }


@dataclass
class Outcome:
    """What the server answered to one request: `done` and a result, or the code of an error."""

    code: str
    result: dict[str, Any] | None = None
    retry_after_s: float = 0.0


def trace(answer: dict[str, Any]) -> dict[str, Any]:
    """Return what depends neither on the clock nor on the batch: every turn, its words, and the counts of tokens.

    Scores are left out, as their last bits are those of a float32 batch; the rankings stay.
    """
    compared = {key: answer[key] for key in ("query", "status", "moments", "turns", "usage")}

    def steady(part: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in part.items() if key not in ("seconds", "score")}

    result: dict[str, Any] = json.loads(json.dumps(compared), object_hook=steady)
    return result


async def load(
    url: str,
    bodies: list[dict[str, Any]],
    at_once: int,
    traces: dict[str, dict[str, Any]] | None = None,
    watch: Callable[[int], None] = lambda count: None,
) -> Tally:
    """Send searches as streams, `at_once` of them at one time.

    Args:
        url: of the server.
        bodies: of the requests.
        at_once: clients; each sends its next search when it has an answer.
        traces: what each query must get, see `trace`; None compares nothing.
        watch: gets the number of searches that are over, after each.
    """
    tally, coming = Tally(), iter(bodies)
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=at_once)

    async def search_in_turn(client: httpx2.AsyncClient) -> None:
        for body in coming:
            outcome, seconds = await _until_admitted(client, url, body, tally)
            if outcome.result is None:
                tally.errors[outcome.code] += 1
            else:
                tally.seconds.append(seconds)
                own = traces is None or trace(outcome.result) == traces[body["query"]]
                tally.wrong += not own or outcome.result["query"] != body["query"]
            watch(len(tally.seconds) + tally.errors.total())

    async with httpx2.AsyncClient(timeout=LIMIT_S, limits=limits) as client:
        began = time.perf_counter()
        await asyncio.gather(*(search_in_turn(client) for _ in range(at_once)))
        tally.wall_s = time.perf_counter() - began
    return tally


async def _until_admitted(
    client: httpx2.AsyncClient, url: str, body: dict[str, Any], tally: Tally
) -> tuple[Outcome, float]:
    """Search until the server takes the request; return what it answered and the seconds of that last try."""
    while True:
        began = time.perf_counter()
        outcome = await _search(client, url, body)
        if outcome.code != "busy":
            return outcome, time.perf_counter() - began
        tally.refused += 1
        await asyncio.sleep(outcome.retry_after_s)


async def _search(client: httpx2.AsyncClient, url: str, body: dict[str, Any]) -> Outcome:
    try:
        async with client.stream("POST", f"{url}/v1/search", json=body | {"stream": True}) as reply:
            if reply.status_code != 200:
                error = json.loads(await reply.aread())["error"]
                return Outcome(error["code"], retry_after_s=float(reply.headers.get("retry-after", 0)))
            async for message in httpx2.EventSource(reply, max_event_size=None):
                event = json.loads(message.data)
                if event["type"] in ("done", "error"):
                    return Outcome(event.get("code", "done"), event.get("result"))
    except httpx2.TransportError:
        return Outcome(LOST)
    return Outcome(LOST)
