"""A service over a corpus that grows, as its tests see it."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from vsr1.config import Config
from vsr1.formats.dataset import DatasetFolder
from vsr1.retrieval.added import AddedFolder

REPOSITORY = Path(__file__).parents[3]
VIDEOS = 8
NEW = "test_0003"  # held back from the served corpus
WHOLE = "whole"  # a split with all of them
BINARY = {"Content-Type": "application/octet-stream"}


@dataclass(frozen=True)
class Served:
    url: str
    config: Config
    data: DatasetFolder
    films: dict[str, Path]
    queries: dict[str, str]

    def ask(self, method: str, path: str, **options: Any) -> httpx2.Response:
        return httpx2.request(method, f"{self.url}{path}", timeout=120, **options)

    def add(self, content: bytes, **query: str) -> httpx2.Response:
        return self.ask("POST", "/v1/videos", params=query, content=content, headers=BINARY)

    def name(self, **source: str) -> httpx2.Response:
        return self.ask("POST", "/v1/videos", json=source)

    def wait(self, video_id: str) -> dict[str, Any]:
        """The video once it is ready or failed."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            found = self.ask("GET", f"/v1/videos/{video_id}").json()
            if found["status"] in ("ready", "failed"):
                return found
            time.sleep(0.1)
        raise TimeoutError(found)

    def ranking(self, video_id: str, turns: int = 1) -> list[str]:
        """What a search for a video's first query lists before any refinement."""
        body = {"query": self.queries[video_id], "max_turns": turns, "top_k": 100}
        answer = self.ask("POST", "/v1/search", json=body)
        assert answer.status_code == 200, answer.text
        return [found["video_id"] for found in answer.json()["turns"][0]["retrieved"]]

    @property
    def added(self) -> AddedFolder:
        return AddedFolder.of(self.config.serve.corpora["toy"])


def refused(answer: httpx2.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]
