"""One search over HTTP, by the command and by the page: what it takes, what is refused, and for whom."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx2
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from typer.testing import CliRunner

from pipelines.cli import app

from .scripted import LATE, LATE_SPAN, late_script
from .served import NEW, VIDEOS, Served, events

expect.set_options(timeout=30_000)


@pytest.fixture(scope="module")
def served(keyed: Served) -> Served:
    return keyed


def test_the_events_of_a_search_come_in_order_and_end_in_done(served: Served, late: str) -> None:
    body = {"query": LATE, "stream": True}
    bearer = {"Authorization": f"Bearer {served.key}"}
    with httpx2.stream("POST", f"{served.url}/v1/search", json=body, timeout=120, headers=bearer) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-store"
        told = list(events(answer))
    result = told[-1]["result"]
    kinds = [(event["turn"], event["type"]) for event in told[:-2] if event["type"] != "reasoning.delta"]
    turn = ["retrieved", "turn.started", "verdict", "refined"]
    last = result["turns"][-1]["turn"]
    assert kinds == [(n, kind) for n in range(1, last + 1) for kind in turn[: 4 if n < last else 3]]
    assert [event["type"] for event in told[-2:]] == ["moment", "done"]
    deltas = [event for event in told if event["type"] == "reasoning.delta"]
    for seen in result["turns"]:
        pieces = [event["text"] for event in deltas if event["turn"] == seen["turn"]]
        assert "".join(pieces) == late_script(seen["turn"], seen["video_id"]) and len(pieces) > 3
        assert seen["rank"] == 1 and seen["retrieved"][0]["video_id"] == seen["video_id"]
    [moment] = result["moments"]
    assert (moment["video_id"], moment["start"], moment["end"]) == (late, *LATE_SPAN)
    assert result["index_version"] == told[0]["index_version"]
    plain = served.search(query=LATE)[1]
    assert [turn | {"seconds": 0} for turn in plain["turns"]] == [turn | {"seconds": 0} for turn in result["turns"]]
    words = [late_script(turn["turn"], turn["video_id"]).split(" ") for turn in result["turns"]]
    assert plain["usage"]["text_tokens"] == sum(map(len, words))


def test_an_excluded_video_is_not_looked_at(served: Served, late: str) -> None:
    first = served.ranking(late)[0]
    status, answer = served.search(query=LATE, exclude_ids=[first], max_turns=1)
    assert status == 200
    assert answer["turns"][0]["video_id"] != first


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
    assert served.search(**body, stream=True) == (status, answer)


def test_only_keys_are_let_in_and_only_so_often(served: Served) -> None:
    def status(headers: dict[str, str]) -> tuple[int, str, str]:
        body = {"query": "a ring", "max_turns": 1}
        answer = httpx2.post(f"{served.url}/v1/search", json=body, timeout=120, headers=headers)
        code = answer.json().get("error", {}).get("code", "")
        return answer.status_code, code, answer.headers.get("retry-after", "")

    assert status({}) == (401, "unknown_key", "")
    assert status({"X-API-Key": served.key + "x"}) == (401, "unknown_key", "")
    assert status({"X-API-Key": served.slow_key})[0] == 200
    code, name, wait = status({"X-API-Key": served.slow_key})
    assert (code, name) == (429, "rate_limited") and 0 < int(wait) <= 60


def test_what_the_server_has(served: Served) -> None:
    [corpus] = httpx2.get(f"{served.url}/v1/corpora", timeout=60, headers={"X-API-Key": served.key}).json()
    assert (corpus["name"], corpus["videos"]) == ("toy", VIDEOS - 1)
    assert httpx2.get(f"{served.url}/healthz", timeout=60).json()["status"] == "ok"
    assert httpx2.get(f"{served.url}/readyz", timeout=60).json()["detail"]["toy"]["videos"] == VIDEOS - 1
    schema = httpx2.get(f"{served.url}/openapi.json", timeout=60).json()
    assert "/v1/search" in schema["paths"]


def test_frames_of_a_video(served: Served) -> None:
    video = "test_0001"

    def get(path: str, **query: Any) -> httpx2.Response:
        return httpx2.get(f"{served.url}/v1/videos/{path}", params=query, headers={"X-API-Key": served.key}, timeout=60)

    assert get(video).json()["duration"] > 5
    pictures = [get(f"{video}/thumbnail", t=t).content for t in (0.0, 1e6)]
    assert [Image.open(io.BytesIO(picture)).size for picture in pictures] == [(64, 64)] * 2
    assert pictures[0] != pictures[1]
    for path in ("nowhere", "nowhere/thumbnail", "..%2f..%2fetc%2fpasswd"):
        assert get(path).status_code == 404, path
    assert get(f"{video}/thumbnail", t=-1).json()["error"]["code"] == "invalid_request"


def test_the_command_asks_the_server(served: Served, late: str, tmp_path: Path) -> None:
    own = tmp_path / "key"
    own.write_text(served.key + "\n")
    done = CliRunner().invoke(app, ["search", LATE, "--url", served.url, "--key-file", str(own), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["moments"][0]["video_id"] == late
    others = [option for video_id in served.films for option in ("--exclude", video_id) if video_id != NEW]
    nothing = CliRunner().invoke(app, ["search", LATE, "--url", served.url, "--key-file", str(own), *others])
    assert nothing.exit_code == 3, nothing.output
    nobody = CliRunner().invoke(app, ["search", "a ring", "--url", "http://127.0.0.1:9"])
    assert nobody.exit_code == 1 and "vsr1 serve" in nobody.stderr


@pytest.fixture
def tab(browser: Browser, served: Served) -> Iterator[Page]:
    """The page with the key entered; afterwards it must have made no error and asked nobody else."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    problems: list[str] = []
    asked: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(served.url)
    page.get_by_label("API key").fill(served.key)
    page.keyboard.press("Enter")
    expect(page.locator("#state")).to_have_text("ready")
    yield page
    page.close()
    assert problems == []
    assert [url for url in asked if not url.startswith((served.url, "blob:"))] == []


def test_a_person_searches_and_says_not_this_one(tab: Page, late: str) -> None:
    tab.get_by_label("What happens in it?").fill(LATE)
    tab.get_by_role("button", name="Search").click()
    answer = tab.locator("#answer")
    expect(answer.get_by_role("heading")).to_contain_text(late)
    expect(answer.locator(".strip img").first).to_have_js_property("naturalWidth", 64)
    assert answer.locator(".strip img.inside").count() >= 1
    answer.get_by_role("button", name="Not this one").click()
    expect(answer.get_by_role("heading")).not_to_contain_text(late)
    assert not [title for title in tab.locator("#turns-list h2").all_inner_texts() if late in title]


def test_the_turns_show_what_was_said_and_how_the_ranking_moved(tab: Page, served: Served, late: str) -> None:
    turns = served.search(query=LATE)[1]["turns"]
    assert len(turns) > 1
    tab.get_by_label("What happens in it?").fill(LATE)
    tab.get_by_role("button", name="Search").click()
    expect(tab.locator("#answer")).to_be_visible()
    cards = tab.locator("#turns-list .card")
    expect(cards).to_have_count(len(turns))
    for number, turn in enumerate(turns):
        expect(cards.nth(number).locator(".badge")).to_have_text(turn["verdict"].replace("_", " "))
        cards.nth(number).get_by_text("Reasoning and ranking").click()
        expect(cards.nth(number).locator("pre")).to_have_text(late_script(turn["turn"], turn["video_id"]))
    expect(cards.first.get_by_text("After refining the query")).to_be_visible()


def test_a_link_asks_again_and_nothing_is_an_answer(tab: Page, served: Served, late: str) -> None:
    tab.goto(f"{served.url}/#{urlencode({'q': LATE, 'corpus': 'toy'})}")
    tab.reload()
    expect(tab.locator("#answer").get_by_role("heading")).to_contain_text(late)
    for _ in range(VIDEOS):
        heading = tab.locator("#answer h2").inner_text()
        if heading == "Nothing matches.":
            break
        tab.get_by_role("button", name="Not this one").click()
        expect(tab.locator("#answer")).to_be_visible()
        expect(tab.locator("#answer h2")).not_to_have_text(heading)
    expect(tab.locator("#answer h2")).to_have_text("Nothing matches.")


def test_a_refusal_is_shown(tab: Page) -> None:
    tab.get_by_label("What happens in it?").fill("   ")
    tab.get_by_role("button", name="Search").click()
    expect(tab.locator("#message")).to_contain_text("query")


def test_the_page_fits_a_phone(tab: Page, late: str) -> None:
    tab.set_viewport_size({"width": 390, "height": 844})
    tab.get_by_label("What happens in it?").fill(LATE)
    tab.get_by_role("button", name="Search").click()
    expect(tab.locator("#answer")).to_be_visible()
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
