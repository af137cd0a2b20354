"""The served agent on a real Ray Serve: one search as an answer and as events, and what is refused."""

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
from vsr1.search.parse import last_element

from .served import QUERIES, Served

expect.set_options(timeout=30_000)


def test_a_search_is_the_evaluation_s_episode(served: Served) -> None:
    assert any(len(one.segments) > 1 for one in served.evaluated), "no query was refined; the test needs one"
    for one in served.evaluated:
        status, answer = served.search(query=one.query, top_k=5)
        assert status == 200
        assert [turn["video_id"] for turn in answer["turns"]] == [segment.video_id for segment in one.segments]
        assert [turn["verdict"] for turn in answer["turns"]] == [segment.verdict for segment in one.segments], (
            answer,
            one,
        )
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
    assert (corpus["name"], corpus["videos"]) == ("toy", QUERIES)
    assert httpx2.get(f"{served.url}/healthz", timeout=60).json()["status"] == "ok"
    assert httpx2.get(f"{served.url}/readyz", timeout=60).json()["detail"]["toy"]["videos"] == QUERIES
    schema = httpx2.get(f"{served.url}/openapi.json", timeout=60).json()
    assert "/v1/search" in schema["paths"]


def test_frames_of_a_video(served: Served) -> None:
    video = served.evaluated[0].gt_video

    def get(path: str, **query: Any) -> httpx2.Response:
        return httpx2.get(f"{served.url}/v1/videos/{path}", params=query, headers={"X-API-Key": served.key}, timeout=60)

    assert get(video).json()["duration"] > 5
    pictures = [get(f"{video}/thumbnail", t=t).content for t in (0.0, 1e6)]
    assert [Image.open(io.BytesIO(picture)).size for picture in pictures] == [(64, 64)] * 2
    assert pictures[0] != pictures[1]
    for path in ("nowhere", "nowhere/thumbnail", "..%2f..%2fetc%2fpasswd"):
        assert get(path).status_code == 404, path
    assert get(f"{video}/thumbnail", t=-1).json()["error"]["code"] == "invalid_request"


def test_the_command_asks_the_server(served: Served, tmp_path: Path) -> None:
    own = tmp_path / "key"
    own.write_text(served.key + "\n")
    found = next(one for one in served.evaluated if one.end_reason == "matched")
    done = CliRunner().invoke(app, ["search", found.query, "--url", served.url, "--key-file", str(own), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["moments"][0]["video_id"] == found.last.video_id
    others = [option for one in served.evaluated for option in ("--exclude", one.gt_video)]
    nothing = CliRunner().invoke(app, ["search", found.query, "--url", served.url, "--key-file", str(own), *others])
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


def test_a_person_searches_and_says_not_this_one(tab: Page, served: Served) -> None:
    one = next(trajectory for trajectory in served.evaluated if trajectory.last.verdict == "matched")
    tab.get_by_label("What happens in it?").fill(one.query)
    tab.get_by_role("button", name="Search").click()
    answer, cards = tab.locator("#answer"), tab.locator("#turns-list .card")
    expect(answer.get_by_role("heading")).to_contain_text(one.last.video_id)
    expect(cards).to_have_count(len(one.segments))
    expect(answer.locator(".strip img").first).to_have_js_property("naturalWidth", 64)
    assert answer.locator(".strip img.inside").count() >= 1
    answer.get_by_role("button", name="Not this one").click()
    expect(answer.get_by_role("heading")).not_to_contain_text(one.last.video_id)
    assert not [title for title in tab.locator("#turns-list h2").all_inner_texts() if one.last.video_id in title]


def test_the_turns_show_what_was_said_and_how_the_ranking_moved(tab: Page, served: Served) -> None:
    one = max(served.evaluated, key=lambda trajectory: len(trajectory.segments))
    tab.get_by_label("What happens in it?").fill(one.query)
    tab.get_by_role("button", name="Search").click()
    expect(tab.locator("#answer")).to_be_visible()
    cards = tab.locator("#turns-list .card")
    for number, segment in enumerate(one.segments):
        expect(cards.nth(number).locator(".badge")).to_have_text(segment.verdict.replace("_", " "))
        cards.nth(number).get_by_text("Reasoning and ranking").click()
        expect(cards.nth(number).locator("pre")).to_have_text(segment.text)
    expect(cards.first.get_by_text("After refining the query")).to_be_visible()


def test_a_link_asks_again_and_nothing_is_an_answer(tab: Page, served: Served) -> None:
    one = served.evaluated[0]
    tab.goto(f"{served.url}/#{urlencode({'q': one.query, 'corpus': 'toy'})}")
    tab.reload()
    expect(tab.locator("#answer").get_by_role("heading")).to_be_visible()
    for _ in range(QUERIES):
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


def test_the_page_fits_a_phone(tab: Page, served: Served) -> None:
    tab.set_viewport_size({"width": 390, "height": 844})
    tab.get_by_label("What happens in it?").fill(served.evaluated[0].query)
    tab.get_by_role("button", name="Search").click()
    expect(tab.locator("#answer")).to_be_visible()
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
