"""The page in a browser, over a corpus that grows: searched, played, linked, added to, deleted from; and its API."""

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import av
import pytest
from playwright.sync_api import Browser, Locator, Page, Route, expect

from .served import NEW, VIDEOS, Served, refused

PART = {"start": 2.0, "end": 6.0, "deep_link": "/#corpus=toy&v=test_0001&t=2.00-6.00"}

expect.set_options(timeout=30_000)


@pytest.fixture(scope="module")
def found(served: Served) -> dict[str, Any]:
    """An answer with a moment."""
    for query in served.queries.values():
        answer = served.ask("POST", "/v1/search", json={"query": query}).json()
        if answer["moments"]:
            return answer
    raise AssertionError("no search of this corpus finds a moment; the tests need one")


@pytest.fixture
def tab(browser: Browser, served: Served) -> Iterator[Page]:
    """The page; afterwards it must have made no error and asked nobody else."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, permissions=["clipboard-write"])
    page = context.new_page()
    problems: list[str] = []
    asked: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda told: problems.append(told.text) if "Content Security Policy" in told.text else None)
    page.on("request", lambda request: asked.append(request.url))
    page.goto(served.url)
    expect(page.locator("#state")).to_have_text("ready")
    yield page
    context.close()
    assert problems == []
    assert [url for url in asked if not url.startswith((served.url, "blob:"))] == []


def search(tab: Page, query: str, turns: int | None = None) -> None:
    tab.get_by_label("What happens in it?").fill(query)
    tab.get_by_label("Videos to look at").fill(str(turns or ""))
    tab.keyboard.press("Enter")


def near(video: Locator, seconds: float) -> None:
    """Wait until a player shows this second."""
    video.page.wait_for_function(
        "([v, at]) => Math.abs(v.currentTime - at) < 0.1", arg=[video.element_handle(), seconds]
    )


def open_moment(tab: Page, moment: dict[str, Any]) -> Locator:
    """The player, opened by a moment's link and ready to play."""
    tab.goto(tab.url.partition("#")[0].rstrip("/") + moment["deep_link"])
    video = tab.locator("#answer video")
    expect(video).to_have_js_property("videoWidth", 64)
    near(video, moment["start"])
    return video


def test_a_search_opens_its_moment_in_the_player(tab: Page, found: dict[str, Any]) -> None:
    ranges: list[str] = []
    tab.on("request", lambda sent: ranges.append(sent.headers.get("range", "")) if "/file?" in sent.url else None)
    search(tab, found["query"])
    [moment] = found["moments"]
    expect(tab.locator("#answer h2")).to_contain_text(moment["video_id"])
    expect(tab.locator("#turns-list .card")).to_have_count(len(found["turns"]))
    expect(tab.get_by_role("status").last).to_contain_text(f"Found in {moment['video_id']}")
    video = tab.locator("#answer video")
    expect(video).to_have_js_property("videoWidth", 64)
    near(video, moment["start"])
    assert ranges and all(asked.startswith("bytes=") for asked in ranges)
    expect(tab.locator("#answer .strip img.inside").first).to_have_js_property("naturalWidth", 64)
    open_moment(tab, PART)  # in the same tab: what was found is another moment's
    expect(tab.get_by_role("status").last).not_to_contain_text("Found in")


def test_the_player_is_driven_by_keys(tab: Page) -> None:
    moment, video = PART, open_moment(tab, PART)
    assert 1 <= tab.locator("#answer .strip img.inside").count() < tab.locator("#answer .strip img").count()
    tab.get_by_label("Position in the video").focus()
    tab.keyboard.press("ArrowRight")
    near(video, moment["start"] + 1)
    tab.keyboard.press("]")
    near(video, moment["end"])
    tab.keyboard.press("ArrowLeft")
    near(video, moment["end"] - 1)
    loop = tab.get_by_role("button", name="Loop the moment")
    tab.keyboard.press("l")
    expect(loop).to_have_attribute("aria-pressed", "true")
    tab.keyboard.press("Space")
    expect(tab.get_by_role("button", name="Pause")).to_be_visible()
    began = {"at": moment["start"], "end": moment["end"] - 1.5}
    tab.wait_for_function("g => (t => t >= g.at && t < g.end)(document.querySelector('video').currentTime)", arg=began)
    tab.keyboard.press("Space")
    expect(video).to_have_js_property("paused", True)
    tab.keyboard.press("[")
    near(video, moment["start"])
    loop.focus()
    tab.keyboard.press("Space")
    expect(loop).to_have_attribute("aria-pressed", "false")
    expect(video).to_have_js_property("paused", True)


def test_a_moment_is_taken_away_as_link_clip_and_answer(tab: Page, found: dict[str, Any], tmp_path: Path) -> None:
    open_moment(tab, PART)
    tab.get_by_role("button", name="Copy link").click()
    expect(tab.locator("#message")).to_have_text("link copied")
    with tab.expect_download() as clip:
        tab.get_by_role("button", name="Save clip").click()
    clip.value.save_as(tmp_path / "clip.mp4")
    with av.open(str(tmp_path / "clip.mp4")) as container:
        stream = container.streams.video[0]
        assert float(stream.duration * stream.time_base) == pytest.approx(4)
    search(tab, found["query"])
    with tab.expect_download() as saved:
        tab.get_by_role("button", name="Save answer").click()
    saved.value.save_as(tmp_path / "answer.json")
    assert json.loads((tmp_path / "answer.json").read_text())["moments"] == found["moments"]


def test_a_link_shows_its_moment_and_searches_no_more(tab: Page, found: dict[str, Any]) -> None:
    searches: list[str] = []
    tab.on("request", lambda sent: searches.append(sent.url) if "/v1/search" in sent.url else None)
    open_moment(tab, found["moments"][0])
    expect(tab.get_by_label("What happens in it?")).to_have_value(found["query"])
    assert searches == []


def test_not_this_one_looks_further(tab: Page, found: dict[str, Any]) -> None:
    search(tab, found["query"])
    first = found["moments"][0]["video_id"]
    tab.get_by_role("button", name="Not this one").click()
    expect(tab.locator("#answer h2")).to_be_visible()
    expect(tab.locator("#answer h2")).not_to_contain_text(first)
    assert not [title for title in tab.locator("#turns-list h2").all_inner_texts() if first in title]


def test_a_film_that_is_gone_or_cannot_be_played_is_shown_by_its_frames(tab: Page, served: Served) -> None:
    place = served.data.raw_videos("test") / "test_0002.mp4"
    hidden = place.rename(place.with_suffix(".hidden"))
    link = f"{served.url}/#{urlencode({'corpus': 'toy', 'v': 'test_0002', 't': '2.00-4.00'})}"
    tab.goto(link)
    image, note = tab.locator(".player > img"), tab.locator(".player > .bad")
    expect(note).to_contain_text("the source file of video 'test_0002'")
    expect(image).to_have_js_property("naturalWidth", 64)
    before = image.get_attribute("src")
    tab.get_by_label("Position in the video").press("]")
    expect(image).not_to_have_attribute("src", before or "")
    hidden.rename(place)
    tab.route("**/file?*", lambda route: route.fulfill(body="no film", content_type="video/mp4"))
    tab.reload()
    expect(note).to_contain_text("cannot play")
    expect(image).to_have_js_property("naturalWidth", 64)


def test_nothing_found_says_what_was_looked_at(tab: Page, served: Served) -> None:
    """A query for a video that is not there."""
    search(tab, served.queries[NEW], turns=2)
    answer = tab.locator("#answer")
    expect(answer.get_by_role("heading")).to_have_text("Nothing matches.")
    expect(answer.locator(".looks li")).to_have_count(2)
    expect(answer.locator(".looks li").first).to_contain_text("not matched")
    answer.locator(".looks button").first.click()
    expect(tab.locator("#answer video")).to_have_js_property("videoWidth", 64)


def test_an_ended_time_and_a_broken_stream_are_told(tab: Page, found: dict[str, Any]) -> None:
    def answers(result: dict[str, Any] | None) -> None:
        body = f"data: {json.dumps({'type': 'done', 'result': result})}\n\n" if result else ": nothing\n\n"

        def fulfil(route: Route) -> None:
            route.fulfill(body=body, content_type="text/event-stream")

        tab.route("**/v1/search", fulfil)
        search(tab, "a ring")

    answers(found | {"status": "partial", "moments": []})
    expect(tab.locator("#answer h2")).to_contain_text("The time limit ended the search")
    answers(None)
    expect(tab.locator("#message")).to_contain_text("connection broke off")
    tab.unroute_all()
    search(tab, "   ")
    expect(tab.locator("#message")).to_contain_text("query")


def test_calls_into_a_long_video_are_lines_of_its_turn(tab: Page, found: dict[str, Any]) -> None:
    video = found["moments"][0]["video_id"]
    call = {"type": "called", "turn": 1, "video_id": video, "tool": "caption", "node": [1, 2], "start": 8.0,
            "end": 16.4, "words": "", "status": "ok", "left": 3}  # fmt: skip
    events = [
        {"type": "turn.started", "turn": 1, "video_id": video},
        call,
        call | {"tool": "video_qa", "words": "what colour?", "status": "out_of_budget"},
        call | {"tool": None, "node": None, "start": None, "end": None, "status": "malformed"},
        {"type": "done", "result": found},
    ]
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    tab.route("**/v1/search", lambda route: route.fulfill(body=body, content_type="text/event-stream"))
    search(tab, "a ring")
    expect(tab.locator("#turns-list .calls li")).to_have_text(
        ["caption 8-16 s; 3 left", "video_qa 8-16 s what colour?, out of budget; 3 left", "no call, malformed; 3 left"]
    )


def test_a_stream_that_is_cut_is_taken_up_again(tab: Page, found: dict[str, Any]) -> None:
    lost: list[str] = []

    def cut(route: Route) -> None:
        whole = route.fetch()
        lost.append(whole.headers["x-search-id"])
        route.fulfill(response=whole, body=whole.text()[: len(whole.text()) // 2])

    tab.route("**/v1/search", cut)
    with tab.expect_request("**/events") as again:
        search(tab, found["query"])
    assert lost[0] in again.value.url and int(again.value.headers["last-event-id"]) > 0
    expect(tab.locator("#answer h2")).to_contain_text(found["moments"][0]["video_id"])
    pieces = [turn["reasoning"] for turn in found["turns"]]
    texts = tab.locator("#turns-list pre").all_text_contents()
    assert len(texts) == len(pieces) and all(piece in text for piece, text in zip(pieces, texts, strict=True))


def test_the_player_counts_by_the_clock_of_the_file(tab: Page) -> None:
    def later(route: Route) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, json=answer.json() | {"first_picture_sec": 1.5})

    tab.route("**/v1/videos/test_0001?*", later)
    tab.goto(tab.url.partition("#")[0].rstrip("/") + PART["deep_link"])
    near(tab.locator("#answer video"), PART["start"] + 1.5)
    expect(tab.get_by_label("Position in the video")).to_have_value(f"{PART['start']:g}")
    tab.get_by_label("Position in the video").press("]")
    near(tab.locator("#answer video"), PART["end"] + 1.5)


def test_examples_are_offered_and_searched(tab: Page, served: Served) -> None:
    [corpus] = served.ask("GET", "/v1/corpora").json()
    assert len(corpus["examples"]) == 3 and set(corpus["examples"]) <= set(served.queries.values())
    tab.locator("#examples").get_by_role("button", name=corpus["examples"][0]).click()
    expect(tab.get_by_label("What happens in it?")).to_have_value(corpus["examples"][0])
    expect(tab.locator("#answer h2")).to_be_visible()
    expect(tab.locator("#examples")).to_be_hidden()


def test_a_video_is_added_found_and_deleted(tab: Page, served: Served) -> None:
    tab.get_by_text("Videos of this corpus").click()
    tiles = tab.locator("#videos li")
    expect(tiles).to_have_count(VIDEOS - 1)
    tab.get_by_label("Video file").set_input_files(served.films[NEW])
    tab.get_by_label("Name").fill(NEW)
    tab.get_by_role("button", name="Add").click()
    expect(tab.locator("#uploads li")).to_contain_text("ready", timeout=120_000)
    expect(tiles).to_have_count(VIDEOS)
    expect(tab.locator("#corpus option")).to_have_text(f"toy ({VIDEOS} videos)")
    tab.get_by_label("Video file").set_input_files(served.films[NEW])
    tab.get_by_role("button", name="Add").click()
    expect(tab.locator("#uploads .bad")).to_contain_text(f"the corpus has this file as video '{NEW}'")

    search(tab, served.queries[NEW], turns=1)
    expect(tab.locator("#turns-list h2").first).to_contain_text(NEW)
    tab.get_by_text("Videos of this corpus").click()
    tab.on("dialog", lambda dialog: dialog.accept())
    tab.get_by_role("button", name=f"Delete {NEW}").click()
    expect(tiles).to_have_count(VIDEOS - 1)
    assert refused(served.ask("GET", f"/v1/videos/{NEW}")) == (404, "unknown_video")


def test_the_videos_of_a_corpus_come_in_pages(tab: Page, served: Served) -> None:
    ids = sorted(set(served.films) - {NEW})
    page = served.ask("GET", "/v1/videos", params={"limit": 3}).json()
    assert [video["video_id"] for video in page["videos"]] == ids[:3] and page["next"] == ids[2]
    rest = served.ask("GET", "/v1/videos", params={"limit": len(ids) - 3, "after": page["next"]}).json()
    assert [video["video_id"] for video in rest["videos"]] == ids[3:] and rest["next"] is None
    assert refused(served.ask("GET", "/v1/videos", params={"limit": 0})) == (422, "invalid_request")
    assert refused(served.ask("GET", "/v1/videos", params={"corpus": "none"})) == (404, "unknown_corpus")
    tab.route("**/v1/videos?*", lambda route: route.continue_(url=route.request.url.replace("limit=24", "limit=4")))
    tab.get_by_text("Videos of this corpus").click()
    expect(tab.locator("#videos li")).to_have_count(4)
    tab.get_by_role("button", name="More videos").click()
    expect(tab.locator("#videos li")).to_have_count(len(ids))
    expect(tab.get_by_role("button", name="More videos")).to_be_hidden()
    tab.get_by_role("button", name=ids[5]).first.click()
    expect(tab.locator("#answer video")).to_have_js_property("videoWidth", 64)
    expect(tab.locator("#answer h2")).to_be_focused()


def colour(place: Locator, name: str) -> str:
    return place.evaluate("(element, name) => getComputedStyle(element)[name]", name)


def test_forced_colours_leave_the_moment_and_what_is_pressed_to_be_seen(tab: Page) -> None:
    tab.emulate_media(forced_colors="active")
    open_moment(tab, PART)
    highlight = tab.evaluate("(d => (d.style.color = 'Highlight', document.body.append(d), getComputedStyle(d).color))"
                             "(document.createElement('div'))")  # fmt: skip
    assert colour(tab.locator(".timeline .mark"), "backgroundColor") == highlight
    assert colour(tab.locator(".timeline .track"), "backgroundColor") != highlight
    inside = tab.locator("#answer .strip img.inside").first
    assert (colour(inside, "outlineColor"), colour(inside, "outlineStyle")) == (highlight, "solid")
    loop = tab.get_by_role("button", name="Loop the moment")
    assert colour(loop, "backgroundColor") != highlight
    loop.click()
    assert colour(loop, "backgroundColor") == highlight


FOCUSED = """() => {
  const one = document.activeElement, box = one.getBoundingClientRect(), style = getComputedStyle(one);
  if (one === document.body) return null;
  return { name: one.id || one.ariaLabel || one.textContent.trim(), tag: one.tagName,
    top: box.top + scrollY, bottom: box.bottom + scrollY, left: box.left,
    seen: box.width > 0 && style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2 };
}"""


def test_the_keyboard_goes_through_the_page_as_it_is_read(tab: Page) -> None:
    open_moment(tab, PART)
    tab.get_by_text("Videos of this corpus").click()
    expect(tab.locator("#videos img").first).to_have_js_property("naturalWidth", 64)
    tab.evaluate("document.activeElement.blur()")
    tab.locator("#query").focus()
    stops: list[dict[str, Any]] = []
    for _ in range(100):
        stop = tab.evaluate(FOCUSED)
        if stop is None:
            break
        if stop["tag"] != "VIDEO":  # whose controls are the browser's
            stops.append(stop)
        tab.keyboard.press("Tab")
    names = [stop["name"] for stop in stops]
    assert [stop["name"] for stop in stops if not stop["seen"]] == []
    assert names[:2] == ["query", "Search"] and names.index("corpus") < names.index("turns")
    assert {"file", "Add", "test_0000", "Delete test_0000", "Position in the video", "Copy link"} <= set(names)
    for before, after in pairwise(stops):
        assert after["top"] >= before["bottom"] - 1 or after["left"] > before["left"], (before, after)


def test_the_focus_is_not_lost_where_its_button_goes(tab: Page, found: dict[str, Any], served: Served) -> None:
    tab.locator("#examples button").first.focus()
    tab.keyboard.press("Enter")
    expect(tab.locator("#message")).to_be_focused()
    expect(tab.locator("#answer h2")).to_be_visible()
    search(tab, found["query"])
    tab.get_by_role("button", name="Not this one").focus()
    tab.keyboard.press("Enter")
    expect(tab.locator("#message")).to_be_focused()


def test_the_page_fits_a_phone(tab: Page, found: dict[str, Any]) -> None:
    tab.set_viewport_size({"width": 360, "height": 740})
    open_moment(tab, found["moments"][0])
    tab.get_by_text("Videos of this corpus").click()
    expect(tab.locator("#videos img").first).to_have_js_property("naturalWidth", 64)
    boxes = "[...document.querySelectorAll('*')].map(e => [e.getBoundingClientRect().right, e.outerHTML])"
    assert [html for right, html in tab.evaluate(boxes) if right > 360] == []
