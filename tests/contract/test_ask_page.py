"""The page of a server that navigates, in a real browser: a film is chosen, calls come as they are made, the answer."""

import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from playwright.sync_api import Browser, Page, expect

from pipelines.serve.gateway.app import build_app
from pipelines.serve.gateway.gateway import Gateway
from pipelines.serve.gateway.schema import AskBody, Video, VideoPage
from vsr1.settings.serving import ServeConfig

CALLS: list[dict[str, Any]] = [
    {"tool": "caption", "node": [2, 1], "start": 176.0, "end": 220.0, "words": "", "status": "ok", "left": 1.0},
    {"tool": None, "node": None, "start": None, "end": None, "words": "", "status": "malformed", "left": 1.0},
]


class Remote:
    """A method of a handle, which returns what it is given."""

    def __init__(self, value: Any) -> None:
        self.value = value

    async def remote(self, *args: Any) -> Any:
        return self.value


class Agent:
    """The handle of an agent that makes the calls, and answers unless it is asked for what it does not know."""

    def __init__(self) -> None:
        self.bodies: list[AskBody] = []
        self.search = self

    def options(self, **options: Any) -> "Agent":
        return self

    def cancel(self) -> None:
        pass

    def remote(self, search_id: str, body: AskBody, corpus: str) -> "Agent":
        self.bodies.append(body)
        return self

    async def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        body = self.bodies[-1]
        for turn, call in enumerate(CALLS, start=1):
            yield {"type": "reasoning.delta", "turn": turn, "text": "<b>where</b>"}
            yield {"type": "called", "turn": turn, "video_id": body.film, **call}
        answer = None if "nobody" in body.question else "red"
        usage = {"prompt_tokens": 1, "text_tokens": 1, "latent_tokens": 0, "seconds": 0.1}
        result = {
            "id": "0" * 32, "status": "answered" if answer else "abstained", "question": body.question,
            "film": body.film, "corpus": "toy", "answer": answer, "calls": CALLS, "budget": 2.0, "spent": 1.0,
            "usage": usage, "model": "vsr1", "weight_version": 0,
        }  # fmt: skip
        yield {"type": "done", "result": result}


@pytest.fixture(scope="module")
def agent() -> Agent:
    return Agent()


@pytest.fixture(scope="module")
def url(agent: Agent, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("films")
    library: Any = type("Library", (), {})()
    films = [Video(video_id=name, status="ready", progress=1, duration=704.0) for name in ("first", "second")]
    library.videos = Remote(VideoPage(videos=films, next=None))
    library.describe = Remote({"toy": {"videos": 2, "index_version": ""}})
    library.examples = Remote({"toy": []})
    settings = ServeConfig.model_validate({"corpora": {"toy": {"root": folder}}})
    app = build_app(Gateway(settings, {"vsr1": agent}, library, asks=True))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture(params=[1280, 390])
def tab(browser: Browser, url: str, request: pytest.FixtureRequest) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": request.param, "height": 844})
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(url)
    expect(page.locator("#state")).to_have_text("ready")
    yield page
    assert page.evaluate("document.documentElement.scrollWidth") <= request.param
    page.close()
    assert problems == []


def test_a_question_shows_its_path_and_answer(tab: Page, agent: Agent) -> None:
    expect(tab.get_by_role("combobox", name="Film", exact=True)).to_have_value("first")
    tab.get_by_role("combobox", name="Film", exact=True).fill("second")
    tab.get_by_label("Calls to spend").fill("2")
    tab.get_by_label("What do you want to know?").fill("which colour?")
    tab.get_by_role("button", name="Ask").click()
    expect(tab.locator("#answer h2")).to_have_text("red")
    expect(tab.locator("#answer")).to_contain_text("1 of 2 spent")
    assert (agent.bodies[-1].film, agent.bodies[-1].budget) == ("second", 2.0)
    turns = tab.locator("#turns-list h2")
    expect(turns.nth(0)).to_have_text("Turn 1: caption 176-220 s; 1 left")
    expect(turns.nth(1)).to_have_text("Turn 2: no call, malformed; 1 left")
    mark = tab.locator("#path .mark")
    expect(mark).to_have_count(1)
    box, path = mark.bounding_box(), tab.locator("#path li").bounding_box()
    assert box is not None and path is not None
    assert (box["x"] - path["x"]) / path["width"] == pytest.approx(176 / 704, abs=0.01)
    tab.get_by_text("Reasoning").first.click()
    expect(tab.locator("#turns-list pre").first).to_have_text("<b>where</b>")


def test_who_does_not_know_says_so_and_what_was_shown_goes(tab: Page) -> None:
    tab.get_by_label("What do you want to know?").fill("what does nobody know?")
    tab.get_by_role("button", name="Ask").click()
    expect(tab.locator("#answer h2")).to_have_text("The agent does not know.")
    tab.get_by_label("What do you want to know?").fill("which colour?")
    tab.get_by_role("button", name="Ask").click()
    expect(tab.locator("#answer h2")).to_have_text("red")
    expect(tab.locator("#turns-list li.card")).to_have_count(2)
