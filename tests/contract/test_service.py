"""The served agent on a real Ray Serve: one search as an answer and as events, and what is refused."""

import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from ray import serve
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.data.build import ensure_dataset
from pipelines.evaluate import evaluate
from pipelines.service.deploy import start_agent
from vsr1.agent.parse import last_element
from vsr1.agent.trajectory import Trajectory
from vsr1.config import load_config

REPOSITORY = Path(__file__).parents[2]
QUERIES = 24
SMALL = ["toy.train=4", "toy.val=0", f"toy.test={QUERIES}", "data.splits=[train,test]", "eval.top_k=5"]

pytestmark = pytest.mark.usefixtures("ray_cluster")


@dataclass(frozen=True)
class Served:
    url: str
    evaluated: list[Trajectory]  # by the same policy, on the same corpus

    def search(self, **body: Any) -> tuple[int, dict[str, Any]]:
        answer = httpx2.post(f"{self.url}/v1/search", json=body, timeout=120)
        return answer.status_code, answer.json()

    def events(self, **body: Any) -> list[dict[str, Any]]:
        with httpx2.stream("POST", f"{self.url}/v1/search", json=body | {"stream": True}, timeout=120) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            return [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("service")
    paths = [f"run_dir={folder / 'run'}", f"data.root={folder / 'data'}", f"serve.corpora.toy.root={folder / 'data'}"]
    memory = ["cluster.rollout.memory_gib=1"]  # Ray offers what is free when it starts
    config = load_config(REPOSITORY / "configs" / "toy.yaml", [*SMALL, *memory, *paths])
    ensure_dataset(config)
    _, evaluated = evaluate(config)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    start_agent(config, "127.0.0.1", port)
    yield Served(f"http://127.0.0.1:{port}", evaluated)
    serve.shutdown()


def test_a_search_is_the_evaluation_s_episode(served: Served) -> None:
    assert any(len(one.segments) > 1 for one in served.evaluated), "no query was refined; the test needs one"
    for one in served.evaluated:
        status, answer = served.search(query=one.query, top_k=5)
        assert status == 200
        assert [turn["video_id"] for turn in answer["turns"]] == [segment.video_id for segment in one.segments]
        assert [turn["verdict"] for turn in answer["turns"]] == [segment.verdict for segment in one.segments]
        for turn, segment in zip(answer["turns"], one.segments, strict=True):
            assert turn["reasoning"] == (last_element(segment.text, "think") or "").strip()
            assert [found["video_id"] for found in turn["retrieved"]] == [video for video, _ in segment.retrieved]
        assert answer["usage"]["text_tokens"] == sum(len(segment.response_token_ids) for segment in one.segments)
        assert answer["status"] == ("matched" if one.end_reason == "matched" and one.last.span else "not_found")
        spans = [(moment["video_id"], moment["start"], moment["end"]) for moment in answer["moments"]]
        assert spans == ([(one.last.video_id, *one.last.span)] if answer["moments"] and one.last.span else [])


def test_the_events_of_a_search_come_in_order_and_end_in_done(served: Served) -> None:
    one = max(served.evaluated, key=lambda trajectory: len(trajectory.segments))
    events = served.events(query=one.query, top_k=5)
    turns = len(one.segments)
    assert [event["type"] for event in events if event["type"] != "reasoning.delta"][:3] == [
        "retrieved", "turn.started", "verdict",
    ]  # fmt: skip
    assert [event["type"] for event in events].count("turn.started") == turns
    assert events[-1]["type"] == "done"
    for number, segment in enumerate(one.segments, start=1):
        pieces = [event["text"] for event in events if event["type"] == "reasoning.delta" and event["turn"] == number]
        assert len(pieces) > 3
        assert "".join(pieces) == segment.text
    assert events[-1]["result"]["turns"] == served.search(query=one.query, top_k=5)[1]["turns"] or turns


def test_an_excluded_video_is_not_looked_at(served: Served) -> None:
    one = served.evaluated[0]
    status, answer = served.search(query=one.query, exclude_ids=[one.segments[0].video_id], max_turns=1)
    assert status == 200
    assert answer["turns"][0]["video_id"] != one.segments[0].video_id


@pytest.mark.parametrize(
    ("body", "status", "code", "message"),
    [
        ({"query": "   "}, 422, "invalid_request", "query"),
        ({"query": "a" * 10_000}, 422, "invalid_request", "query"),
        ({"query": "a ring", "corpus": "nowhere"}, 404, "unknown_corpus", "there are toy"),
        ({"query": "a ring", "turns": 3}, 422, "invalid_request", "turns"),
        ({"query": "a ring", "max_turns": 0}, 422, "invalid_request", "max_turns"),
        ({"query": "a ring", "exclude_ids": ["\u00e9\u0301 nowhere"]}, 422, "unknown_video", "nowhere"),
    ],
)
def test_what_cannot_be_searched_is_refused(
    served: Served, body: dict[str, Any], status: int, code: str, message: str
) -> None:
    found, answer = served.search(**body)
    assert (found, answer["error"]["code"]) == (status, code)
    assert message in answer["error"]["message"]
    if status != 422 or code != "invalid_request":
        assert served.events(**body)[-1] == {"type": "error", **answer["error"]}


def test_what_the_server_has(served: Served) -> None:
    [corpus] = httpx2.get(f"{served.url}/v1/corpora", timeout=60).json()
    assert (corpus["name"], corpus["videos"]) == ("toy", QUERIES)
    assert httpx2.get(f"{served.url}/healthz", timeout=60).json()["status"] == "ok"
    assert httpx2.get(f"{served.url}/readyz", timeout=60).json()["detail"]["toy"]["videos"] == QUERIES
    schema = httpx2.get(f"{served.url}/openapi.json", timeout=60).json()
    assert "/v1/search" in schema["paths"]


def test_the_command_asks_the_server(served: Served) -> None:
    found = next(one for one in served.evaluated if one.end_reason == "matched")
    done = CliRunner().invoke(app, ["search", found.query, "--url", served.url, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["moments"][0]["video_id"] == found.last.video_id
    others = [option for one in served.evaluated for option in ("--exclude", one.gt_video)]
    nothing = CliRunner().invoke(app, ["search", found.query, "--url", served.url, *others])
    assert nothing.exit_code == 3, nothing.output
    nobody = CliRunner().invoke(app, ["search", "a ring", "--url", "http://127.0.0.1:9"])
    assert nobody.exit_code == 1 and "vsr1 serve" in nobody.stderr
