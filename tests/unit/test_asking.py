"""A served question about one film without an engine: its events, its answer, its routes and its command."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.serve import client
from pipelines.serve.agents.asking import Asking
from pipelines.serve.gateway.app import build_app
from pipelines.serve.gateway.events import Event
from pipelines.serve.gateway.schema import AskBody, Video, VideoPage
from pipelines.serve.library.library import FilmLibraryReplica
from vsr1.navigate.files import Question
from vsr1.retrieval.request import UnknownVideoError
from vsr1.settings.navigate import NavigateConfig
from vsr1.settings.parts import AgentConfig

from .test_gateway import Handle, Service, code
from .test_searching import scripted, use

FILM = Question(question_id="q", film="long", seconds=2000.0, question="?", answer="red")
LOOK = "<think>in</think><tool>caption(1,1)</tool>"
ANSWER = "<think>red</think><answer>red</answer>"


def play(*texts: str, limit_s: float = 10.0, **body: Any) -> list[Event]:
    """Return the events of a question whose turns say these texts; one that has none of its own never ends."""

    async def events() -> list[Event]:
        asked = AskBody(film="long", question="which colour?", **body)
        agent, names = AgentConfig(refinement="none"), ("id", "toy", "small")
        asking = Asking(asked, FILM, agent, names, 7, limit_s, NavigateConfig())
        return [event async for event in asking.events(use, scripted(texts))]

    return asyncio.run(events())


def test_calls_are_told_and_the_answer_ends_them() -> None:
    events = play(LOOK, "<tool>caption(9,9)</tool>", ANSWER, budget=3)
    asked = ["reasoning.delta", "called"]
    assert [event["type"] for event in events] == [*asked, *asked, "reasoning.delta", "done"]
    assert [event["turn"] for event in events[:-1]] == [1, 1, 2, 2, 3]
    call = {"tool": "caption", "node": [1, 1], "start": 0.0, "end": 80.0, "words": "", "status": "ok", "left": 2.0}
    assert events[1] == {"type": "called", "turn": 1, "video_id": "long", **call}
    result = events[-1]["result"]
    assert (result["status"], result["answer"], result["budget"], result["spent"]) == ("answered", "red", 3.0, 1.0)
    assert result["calls"] == [call, {**call, "node": [9, 9], "start": None, "end": None, "status": "bad_node"}]
    assert (result["film"], result["weight_version"], result["usage"]["text_tokens"]) == ("long", 7, 6)


@pytest.mark.parametrize(
    ("texts", "values", "status"),
    [
        (["<answer>unknown</answer>"], {}, "abstained"),
        ([LOOK, "nothing"], {"budget": 1}, "no_answer"),
        ([LOOK], {"limit_s": 0.3}, "partial"),
    ],
)
def test_an_end_without_an_answer_has_a_name(texts: list[str], values: dict[str, Any], status: str) -> None:
    result = play(*texts, **values)[-1]["result"]
    assert (result["status"], result["answer"]) == (status, None)


@pytest.fixture
def service(tmp_path: Path) -> Service:
    service = Service(tmp_path)
    service.gateway.asks = True
    service.app = build_app(service.gateway)
    service.agent.last = play(LOOK, ANSWER)[-1]
    return service


def test_a_question_is_answered_in_one_piece_or_as_events(service: Service) -> None:
    body = {"film": "long", "question": " which colour? ", "budget": 2}
    answer = service.ask("POST", "/v1/ask", json=body)
    assert (answer.status_code, answer.json()["answer"]) == (200, "red")
    assert (service.agent.bodies[-1].question, service.agent.bodies[-1].budget) == ("which colour?", 2.0)
    stream = service.ask("POST", "/v1/ask", json=body | {"stream": True})
    assert "event: done" in stream.text and len(stream.headers["x-search-id"]) == 32


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ({"film": "long", "question": " "}, "question"),
        ({"question": "?"}, "film"),
        ({"film": "long", "question": "?", "budget": -1}, "budget"),
        ({"film": "long", "question": "?", "options": [""]}, "options"),
        ({"film": "long", "question": "?", "max_turns": 2}, "max_turns"),
    ],
)
def test_what_is_wrong_with_a_question_is_named(service: Service, body: dict[str, Any], name: str) -> None:
    answer = service.ask("POST", "/v1/ask", json=body)
    assert code(answer) == (422, "invalid_request") and name in answer.json()["error"]["message"]


def test_only_what_navigation_has_is_described_and_an_unknown_film_is_refused(service: Service) -> None:
    description = service.ask("GET", "/openapi.json").json()
    assert {"/v1/ask", "/v1/films", "/v1/corpora", "/v1/search/{search_id}/events"} <= set(description["paths"])
    assert not {"/v1/search", "/v1/videos", "/retrieve"} & set(description["paths"])
    assert "unknown_video" in description["paths"]["/v1/ask"]["post"]["responses"]["422"]["description"]
    service.agent.fault = UnknownVideoError("corpus 'toy' has no film 'x'")
    answer = service.ask("POST", "/v1/ask", json={"film": "x", "question": "?"})
    assert code(answer) == (422, "unknown_video") and "no film 'x'" in answer.json()["error"]["message"]


def test_films_are_listed_by_pages(service: Service) -> None:
    library = FilmLibraryReplica.__new__(FilmLibraryReplica)
    library._films = {"toy": {name: FILM.model_copy(update={"film": name}) for name in ("c", "a", "b")}}
    page = asyncio.run(library.videos("toy", "", 2))
    assert [(one.video_id, one.duration) for one in page.videos] == [("a", 2000.0), ("b", 2000.0)] and page.next == "b"
    assert asyncio.run(library.videos("toy", "b", 2)) == VideoPage(
        videos=[Video(video_id="c", status="ready", progress=1, duration=2000.0)], next=None
    )
    assert asyncio.run(library.film("toy", "a")).seconds == 2000.0
    with pytest.raises(UnknownVideoError, match="corpus 'toy' has no film 'x'; GET /v1/films lists them"):
        asyncio.run(library.film("toy", "x"))
    service.library.videos = Handle(lambda *args: page)  # type: ignore[attr-defined]
    assert service.ask("GET", "/v1/films?limit=2").json()["next"] == "b"


@pytest.mark.parametrize(("texts", "status"), [([LOOK, ANSWER], 0), ([LOOK, "<answer>unknown</answer>"], 3)])
def test_the_command_shows_calls_and_answer(monkeypatch: pytest.MonkeyPatch, texts: list[str], status: int) -> None:
    events, bodies = play(*texts, budget=2), []

    async def stream(url: str, body: dict[str, Any], key: str | None, path: str) -> AsyncIterator[Event]:
        bodies.append((path, body["film"], body["budget"]))
        for event in events:
            yield event

    monkeypatch.setattr(client, "stream_search", stream)
    shown = CliRunner().invoke(app, ["ask", "long", "which colour?", "--budget", "2"])
    assert shown.exit_code == status
    answer = "red" if status == 0 else "abstained"
    assert shown.output.splitlines() == ["turn 1: caption 0-80 s: ok, 1 left", answer, "1 of 2 spent"]
    whole = CliRunner().invoke(app, ["ask", "long", "which colour?", "--json", "--budget", "2"])
    assert whole.exit_code == status and json.loads(whole.output)["film"] == "long"
    assert bodies == [("/v1/ask", "long", 2.0)] * 2
