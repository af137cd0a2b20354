"""A toy service on a real Ray Serve, as its tests see it."""

import json
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

REPOSITORY = Path(__file__).parents[3]
QUERIES = 24  # of `toy_data`
ORIGIN = "https://friend.example"  # whose scripts may ask
LIMITS = {"body_limit_kib": 64, "body_limit_s": 2.0, "resume_grace_s": 1.0, "cors_origins": [ORIGIN]}


@dataclass(frozen=True)
class Served:
    url: str
    evaluated: list[SearchTrajectory]  # by the same policy, on the same corpus

    key: str
    slow_key: str  # one request a minute
    other_key: str

    def search(self, **body: Any) -> tuple[int, dict[str, Any]]:
        answer = httpx2.post(f"{self.url}/v1/search", json=body, timeout=120, headers={"X-API-Key": self.key})
        return answer.status_code, answer.json()

    def events(self, **body: Any) -> list[dict[str, Any]]:
        with httpx2.stream(
            "POST",
            f"{self.url}/v1/search",
            json=body | {"stream": True},
            timeout=120,
            headers={"Authorization": f"Bearer {self.key}"},
        ) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            return [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]

    def metric(self, name: str) -> dict[str, float]:
        """Values of a metric by its labels."""
        lines = httpx2.get(f"{self.url}/metrics", timeout=60).text.splitlines()
        found = [line.rsplit(" ", 1) for line in lines if line.startswith(name)]
        return {labels.removeprefix(name): float(value) for labels, value in found}

    def until_idle(self) -> None:
        deadline = time.monotonic() + 20
        while any(self.metric("vsr1_searches_now").values()):
            assert time.monotonic() < deadline, "a search nobody reads goes on"
            time.sleep(0.2)

    def raw(self, request: str) -> socket.socket:
        """A connection on which this was sent as it is."""
        host, port = self.url.removeprefix("http://").split(":")
        connection = socket.create_connection((host, int(port)), timeout=30)
        connection.sendall(request.encode())
        return connection
