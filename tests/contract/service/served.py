"""The served agent with real engines, as its tests see it: two models, two corpora."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from vsr1.config import Config
from vsr1.search.record import SearchTrajectory

REPOSITORY = Path(__file__).parents[3]
CORPUS, SMALL = "toy", "small"
AT_ONCE = 8
Answer = tuple[int, dict[str, Any]]


@dataclass(frozen=True)
class Served:
    """A running service.

    Attributes:
        evaluated: by the first model, on the same corpus.
        other: checkpoint of the second model.
        traces: by model, then by query, what it answers when nothing else runs.
    """

    url: str
    config: Config
    evaluated: list[SearchTrajectory]
    queries: list[str]
    other: Path
    traces: dict[str, dict[str, Any]]

    def search(self, query: str, **body: Any) -> Answer:
        asked = {"corpus": CORPUS, "query": query} | body
        answer = httpx2.post(f"{self.url}/v1/search", json=asked, timeout=120)
        return answer.status_code, answer.json()

    def events(self, query: str, **body: Any) -> list[dict[str, Any]]:
        asked = {"corpus": CORPUS, "query": query, "stream": True} | body
        with httpx2.stream("POST", f"{self.url}/v1/search", json=asked, timeout=120) as answer:
            return [json.loads(message.data) for message in httpx2.EventSource(answer)]

    def ready(self) -> bool:
        return httpx2.get(f"{self.url}/readyz", timeout=60).status_code == 200
