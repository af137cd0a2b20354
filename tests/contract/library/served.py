"""A service over a corpus that grows, as its tests see it: real gateway and library, scripted agents."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx2
from ray import serve

from pipelines.serve.deploy import APPLICATION, start_agent
from pipelines.serve.gateway.keys import add_key
from vsr1.config import Config
from vsr1.formats.annotations import Annotation
from vsr1.formats.dataset import DatasetFolder
from vsr1.retrieval.added import AddedFolder
from vsr1.settings.serving import UploadConfig

from .scripted import annotations_of, application

REPOSITORY = Path(__file__).parents[3]
VIDEOS = 8
NEW = "test_0003"  # held back from the served corpus
WHOLE = "whole"  # a split with all of them
BINARY = {"Content-Type": "application/octet-stream"}
ORIGIN = "https://friend.example"  # whose scripts may ask, where there are keys
LIMITS = {"body_limit_kib": 64, "body_limit_s": 2.0, "resume_grace_s": 1.0, "cors_origins": [ORIGIN]}


@dataclass(frozen=True)
class Served:
    """A running service.

    Attributes:
        films: of all videos, by id.
        queries: of all videos, by id, the first that is about it.
        moments: by query, the last first.
        key: that every request of these methods sends, "" where none is wanted. The others: `slow_key` may ask once a
            minute, `other_key` is another's.
    """

    url: str
    config: Config
    data: DatasetFolder
    films: dict[str, Path]
    moments: dict[str, Annotation]
    key: str = ""
    slow_key: str = ""
    other_key: str = ""

    @property
    def queries(self) -> dict[str, str]:
        return {row.video: query for query, row in self.moments.items()}

    @property
    def headers(self) -> dict[str, str]:
        return {"X-API-Key": self.key} if self.key else {}

    def ask(self, method: str, path: str, **options: Any) -> httpx2.Response:
        headers = self.headers | options.pop("headers", {})
        return httpx2.request(method, f"{self.url}{path}", timeout=120, headers=headers, **options)

    def search(self, **body: Any) -> tuple[int, dict[str, Any]]:
        answer = self.ask("POST", "/v1/search", json=body)
        return answer.status_code, answer.json()

    def add(self, content: bytes, **query: str) -> httpx2.Response:
        return self.ask("POST", "/v1/videos", params=query, content=content, headers=BINARY)

    def name(self, **source: str) -> httpx2.Response:
        return self.ask("POST", "/v1/videos", json=source)

    def wait(self, video_id: str) -> dict[str, Any]:
        """Return the video once it is ready or failed."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            video = self.ask("GET", f"/v1/videos/{video_id}").json()
            if video["status"] in ("ready", "failed"):
                return video
            time.sleep(0.1)
        raise TimeoutError(video)

    def ranking(self, video_id: str, turns: int = 1) -> list[str]:
        """Return what a search for a video's first query lists before any refinement."""
        status, answer = self.search(query=self.queries[video_id], max_turns=turns, top_k=100)
        assert status == 200, answer
        return [found["video_id"] for found in answer["turns"][0]["retrieved"]]

    @property
    def added(self) -> AddedFolder:
        return AddedFolder.of(self.config.serve.corpora["toy"])

    def metric(self, name: str) -> dict[str, float]:
        """Return the values of a metric by its labels."""
        lines = httpx2.get(f"{self.url}/metrics", timeout=60).text.splitlines()
        rows = [line.rsplit(" ", 1) for line in lines if line.startswith(name)]
        return {labels.removeprefix(name): float(value) for labels, value in rows}

    def until_idle(self) -> None:
        deadline = time.monotonic() + 20
        while any(self.metric("vsr1_searches_now").values()):
            assert time.monotonic() < deadline, "a search nobody reads goes on"
            time.sleep(0.2)

    def raw(self, request: str) -> socket.socket:
        """Return a connection on which this was sent as it is."""
        host, port = self.url.removeprefix("http://").split(":")
        connection = socket.create_connection((host, int(port)), timeout=30)
        connection.sendall(request.encode())
        return connection


class Stage:
    """Shows one service at one time, and starts none that is shown already."""

    def __init__(self, config: Config, data: DatasetFolder, films: dict[str, Path], folder: Path) -> None:
        self._folder, self._moments = folder, annotations_of(config, "toy")
        self._corpus = {"data": data, "films": films, "moments": self._moments}
        self._config, self._shown, self._now = config, ExitStack(), ""
        self._services: dict[str, Served] = {}

    def show(self, name: str) -> Served:
        """Serve what the method of this name says."""
        if name != self._now:
            self.close()
            self._services[name] = self._shown.enter_context(getattr(self, name)())
            self._now = name
        return self._services[name]

    def close(self) -> None:
        self._shown.close()
        self._now = ""

    @contextmanager
    def to_everybody(self) -> Iterator[Served]:
        """Serve the corpus without keys."""
        with serving(self._config) as url:
            yield Served(url, self._config, **self._corpus)

    @contextmanager
    def with_keys(self) -> Iterator[Served]:
        """Serve the corpus for those who have keys, with tight limits, and let nobody name paths and addresses."""
        file = self._folder / "keys.json"
        file.unlink(missing_ok=True)
        limits = {"tests": (10_000, 8), "slow": (1, 1), "others": (100, 1)}
        secrets = [add_key(file, name, per_minute, at_once) for name, (per_minute, at_once) in limits.items()]
        settings = self._config.serve.model_copy(update={"key_file": file, "upload": UploadConfig(), **LIMITS})
        config = self._config.model_copy(update={"serve": settings})
        with serving(config) as url:
            yield Served(url, config, **self._corpus, key=secrets[0], slow_key=secrets[1], other_key=secrets[2])


@contextmanager
def serving(config: Config, build: Any = application) -> Iterator[str]:
    """Serve for a `with` on the Ray that runs; gives the address. Serve itself stays for the next one."""
    start_agent(config, "127.0.0.1", port(), build)
    yield f"http://127.0.0.1:{port()}"
    serve.delete(APPLICATION)


@cache
def port() -> int:
    """Return the port of all services of this folder, which was free at the first call."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def refused(answer: httpx2.Response) -> tuple[int, str]:
    """Return status and code of a refusal."""
    return answer.status_code, answer.json()["error"]["code"]


def events(answer: httpx2.Response) -> Iterator[dict[str, Any]]:
    """Read the events of a stream."""
    for message in httpx2.EventSource(answer):
        yield json.loads(message.data)
