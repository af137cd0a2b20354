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

    took_s: float = 0.0
    seconds: list[float] = field(default_factory=list)  # of each answer, its waits after 429 not counted
    refused: int = 0  # answers 429; each such search tried again after Retry-After
    errors: Counter[str] = field(default_factory=Counter)  # by code; LOST is one
    wrong: int = 0  # answers that are not those of their query

    def to_json(self) -> dict[str, Any]:
        p50, p99 = np.percentile(self.seconds, [50, 99]) if self.seconds else (0.0, 0.0)
        return {
            "answers": len(self.seconds),
            "answers_per_s": round(len(self.seconds) / self.took_s, 2),
            "p50_s": round(float(p50), 3),
            "p99_s": round(float(p99), 3),
            "refused": self.refused,
            "lost": self.errors[LOST],
            "errors": {code: count for code, count in self.errors.items() if code != LOST},
            "wrong": self.wrong,
        }


def trace(answer: dict[str, Any]) -> dict[str, Any]:
    """What depends neither on the clock nor on the batch: every turn, its words, and the counts of tokens."""
    kept = {key: answer[key] for key in ("query", "status", "moments", "turns", "usage")}
    steady: dict[str, Any] = json.loads(json.dumps(kept), object_hook=_steady)
    return steady


async def load(
    url: str,
    bodies: list[dict[str, Any]],
    at_once: int,
    traces: dict[str, dict[str, Any]] | None = None,
    watch: Callable[[int], None] = lambda done: None,
) -> Tally:
    """Send searches as streams, `at_once` of them at one time.

    Args:
        bodies: of the requests.
        traces: what each query must get, see `trace`; None compares nothing.
        watch: gets the number of searches that are over, after each.
    """
    tally, coming = Tally(), iter(bodies)
    done = 0
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=at_once)

    async def client_of_its_own(client: httpx2.AsyncClient) -> None:
        nonlocal done
        for body in coming:
            code, answer, seconds = await _until_admitted(client, url, body, tally)
            if answer is None:
                tally.errors[code] += 1
            else:
                tally.seconds.append(seconds)
                tally.wrong += answer["query"] != body["query"] or (
                    traces is not None and trace(answer) != traces[body["query"]]
                )
            done += 1
            watch(done)

    async with httpx2.AsyncClient(timeout=LIMIT_S, limits=limits) as client:
        began = time.perf_counter()
        await asyncio.gather(*(client_of_its_own(client) for _ in range(at_once)))
        tally.took_s = time.perf_counter() - began
    return tally


async def _until_admitted(
    client: httpx2.AsyncClient, url: str, body: dict[str, Any], tally: Tally
) -> tuple[str, dict[str, Any] | None, float]:
    """Code, answer if there is one, and seconds."""
    while True:
        began = time.perf_counter()
        code, answer, wait_s = await _ask(client, url, body)
        if code != "busy":
            return code, answer, time.perf_counter() - began
        tally.refused += 1
        await asyncio.sleep(wait_s)


async def _ask(client: httpx2.AsyncClient, url: str, body: dict[str, Any]) -> tuple[str, dict[str, Any] | None, float]:
    """Code, answer if there is one, and after how many seconds to try again."""
    try:
        async with client.stream("POST", f"{url}/v1/search", json=body | {"stream": True}) as reply:
            if reply.status_code != 200:
                found = json.loads(await reply.aread())["error"]["code"]
                return str(found), None, float(reply.headers.get("retry-after", 0))
            async for line in reply.aiter_lines():
                event: dict[str, Any] = json.loads(line[6:]) if line.startswith("data: ") else {"type": "comment"}
                if event["type"] == "done":
                    return "done", event["result"], 0.0
                if event["type"] == "error":
                    return str(event["code"]), None, 0.0
    except httpx2.TransportError:
        return LOST, None, 0.0
    return LOST, None, 0.0


def _steady(found: dict[str, Any]) -> dict[str, Any]:
    """Without seconds, and without scores, whose last bits are those of a float32 batch; rankings stay."""
    return {key: value for key, value in found.items() if key not in ("seconds", "score")}
