"""The report page in a real browser, opened from its file: filters, order, details, groups, links, keys and print."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from bench.report import write_synthetic_run
from pipelines.evaluation.report import read_run
from vsr1.report.page import write_report
from vsr1.toy.render import render
from vsr1.video.clips import Clip

HOSTILE = '</script><img src="x" onerror="document.title=1"><script>document.title=2</script> & <b>bold</b>'
COUNT = 400


@dataclass(frozen=True)
class Made:
    """A page and the rows that went into it, in their order."""

    url: str
    rows: list[dict[str, Any]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return write_page(tmp_path_factory.mktemp("report"), {"one": COUNT})


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return write_page(tmp_path_factory.mktemp("report"), {"first": 24, "second": 12})


def write_page(folder: Path, sizes: dict[str, int]) -> Made:
    """A page of synthetic runs; the query and the reply of the very first trajectory are hostile."""
    runs = []
    for seed, (name, size) in enumerate(sizes.items()):
        videos = write_synthetic_run(folder / name, size, seed)
        log = folder / name / "before.trajectories.jsonl"
        first, *others = log.read_text().splitlines()
        row = json.loads(first)
        row["task"]["query"] = row["turns"][0]["text"] = HOSTILE
        log.write_text("\n".join([json.dumps(row), *others, ""]))

        def frames(video: str, clip_hash: str, videos: Any = videos) -> Clip:
            times = np.arange(float(videos[video].film.duration))
            return Clip(video, render(videos[video].film, times), times, clip_hash)

        runs.append(replace(read_run(folder / name, name, with_frames=False), frames=frames))
    page = folder / "report.html"
    write_report(page, title=HOSTILE, runs=runs)
    return Made(page.as_uri(), [row for run in runs for row in run.rows])


@pytest.fixture
def tab(browser: Browser, made: Made) -> Iterator[Page]:
    yield from opened(browser, made.url)


def opened(browser: Browser, url: str, **options: Any) -> Iterator[Page]:
    """A tab with the page; afterwards it must have made no error and asked for nothing but itself."""
    page = browser.new_page(**({"viewport": {"width": 1280, "height": 900}} | options))
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: problems.append(dialog.message))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(url)
    expect(page.locator("#rows [role=option]").first).to_be_visible()
    yield page
    page.close()
    assert problems == []
    assert [address for address in asked if not address.startswith(("file:", "data:"))] == []


def count(page: Page) -> int:
    return int(page.locator("#count").inner_text().split()[0])


def first_ids(page: Page, most: int = 8) -> list[str]:
    rows = page.locator("#rows [role=option]")
    return [str(rows.nth(at).get_attribute("data-id")) for at in range(min(most, rows.count()))]


def choose(page: Page, field: str, option: str) -> None:
    page.locator(f"#filters select[name={field}]").select_option(label=option)


def name_of(row: dict[str, Any], run: str = "one") -> str:
    return f"{run}/{row['source']}/{row['step']}/{row['query_id']}/{row['sample']}"


def test_only_rows_in_sight_are_elements(tab: Page) -> None:
    assert count(tab) == COUNT
    assert tab.locator("#rows [role=option]").count() < 40
    tab.locator("#rows").evaluate("box => { box.scrollTop = box.scrollHeight; }")
    last = tab.locator(f"#rows [aria-posinset='{COUNT}']")
    expect(last).to_be_visible()
    assert last.get_attribute("aria-setsize") == str(COUNT)
    assert tab.locator("#rows [role=option]").count() < 40


def test_filters_keep_what_they_say(tab: Page, made: Made) -> None:
    def shown(wanted: Any) -> int:
        return sum(bool(wanted(row)) for row in made.rows)

    form = tab.locator("#filters")
    searched = made.rows[40]
    form.get_by_label("Search").fill(f"  {searched['gt_video'].upper()} ")
    videos = [{row["gt_video"], *(turn["video"] for turn in row["turns"])} for row in made.rows]
    assert count(tab) == sum(searched["gt_video"] in found for found in videos)
    assert name_of(searched) in first_ids(tab, 40)
    form.get_by_label("Search").fill("")
    cases = [
        ("source", "after", lambda row: row["source"] == "after"),
        ("source", "training, all steps", lambda row: row["source"] == "training"),
        ("source", "training step 2", lambda row: row["step"] == 2),
        ("outcome", "matched a wrong video", lambda row: row["outcome"] == "wrong video"),
        ("turns", "2", lambda row: len(row["turns"]) == 2),
    ]
    for field, option, wanted in cases:
        choose(tab, field, option)
        assert 0 < count(tab) == shown(wanted) < COUNT, option
        form.get_by_role("button", name="Reset").click()
        expect(tab.locator("#count")).to_have_text(f"{COUNT} trajectories")
    form.get_by_role("checkbox", name="wrong verdict").check()
    assert count(tab) == shown(lambda row: any(not turn["correct"] for turn in row["turns"]))
    form.get_by_role("checkbox", name="refined").check()
    assert (
        0
        < count(tab)
        == shown(lambda row: any(not t["correct"] for t in row["turns"]) and any(t["refined"] for t in row["turns"]))
    )
    form.get_by_label("Search").fill("nothing is called this")
    expect(tab.locator("#count")).to_have_text(f"0 of {COUNT} trajectories")
    assert tab.locator("#rows [role=option]").count() == 0


def test_sorts_put_first_what_they_say(tab: Page, made: Made) -> None:
    def change(row: dict[str, Any]) -> float:
        return float(np.log(row["first_rank"]) - np.log(row["last_rank"]))

    cases = {
        "worst rank change first": change,
        "best rank change first": lambda row: -change(row),
        "wrong verdict first": lambda row: -sum(not turn["correct"] for turn in row["turns"]),
        "IoU, lowest first": lambda row: row["iou"],
        "IoU, highest first": lambda row: -row["iou"],
        "reward, highest first": lambda row: -row["reward"],
        "query id": lambda row: row["query_id"],
    }
    for label, key in cases.items():
        choose(tab, "sort", label)
        expected = [name_of(row) for row in sorted(made.rows, key=key)]
        assert first_ids(tab) == expected[:8], label


def test_a_trajectory_opens_with_all_it_has(tab: Page, made: Made) -> None:
    at, row = next((i, r) for i, r in enumerate(made.rows) if len(r["turns"]) == 2 and r["turns"][1]["iou"] and i)
    assert at < 8
    tab.locator("#rows [role=option]").nth(at).click()
    detail = tab.locator("#detail")
    expect(detail.get_by_role("heading", level=3)).to_have_text(row["query"])
    turns = detail.locator(".turn")
    expect(turns).to_have_count(2)
    expect(detail.locator(".film img")).to_have_count(2)
    assert (
        detail.locator(".film img").first.evaluate(
            "async image => { await image.decode(); return image.naturalWidth; }"
        )
        == 768
    )
    last = turns.nth(1)
    expect(last.locator("rect.true")).to_have_count(1)
    expect(last.locator("rect.predicted")).to_have_count(1)
    start, end = row["gt_span"]
    bar = last.locator("rect.true")
    assert float(str(bar.get_attribute("x")).strip("%")) == pytest.approx(100 * start / row["gt_duration"], abs=0.01)
    assert float(str(bar.get_attribute("width")).strip("%")) == pytest.approx(
        100 * (end - start) / row["gt_duration"], abs=0.01
    )
    expect(last).to_contain_text(f"IoU {row['turns'][1]['iou']:.2f}")
    expect(last).to_contain_text("✓ matched, correct")
    expect(turns.nth(0)).to_contain_text(f"rank {row['turns'][0]['rank_before']} → {row['turns'][0]['rank_after']}")
    expect(turns.nth(0).locator(".reply")).to_have_text(row["turns"][0]["text"])
    for style in ("tag-think", "in-think", "tag-answer", "tag-refine"):
        assert turns.nth(0).locator(f".{style}").count()
    table = turns.nth(0).locator("table.ranking")
    expect(table).to_contain_text("After refinement")
    expect(table.locator("tbody tr")).to_have_count(10)
    expect(detail.locator(".rewards")).to_contain_text("verification")
    assert f"{abs(row['reward']):.3f}" in detail.locator(".rewards").inner_text()


def test_samples_of_a_group_stand_side_by_side(tab: Page, made: Made) -> None:
    choose(tab, "source", "training step 3")
    tab.locator("#rows [role=option]").nth(1).click()
    tab.get_by_role("link", name="Compare group: 4 samples").click()
    samples = tab.locator(".sample")
    expect(samples).to_have_count(4)
    group = [row for row in made.rows if row["step"] == 3]
    for at, row in enumerate(group):
        expect(samples.nth(at).get_by_role("heading", level=4).first).to_contain_text(f"Sample {row['sample']}")
        expect(samples.nth(at)).to_contain_text(f"{abs(row['reward']):.3f}")
        expect(samples.nth(at).locator(".turn")).to_have_count(len(row["turns"]))
    boxes = [samples.nth(at).bounding_box() for at in range(4)]
    assert len({box["y"] for box in boxes if box}) == 1
    tab.get_by_role("link", name="open").nth(2).click()
    expect(tab.locator("#detail > header")).to_contain_text("training step 3, sample 2")
    tab.go_back()
    expect(samples).to_have_count(4)
    tab.keyboard.press("Escape")
    expect(tab.locator("#rows")).to_be_visible()
    tab.keyboard.press("Escape")
    expect(tab.locator("#rows")).to_be_focused()


def test_a_link_opens_its_trajectory(browser: Browser, made: Made) -> None:
    row = made.rows[333]
    for page in opened(browser, f"{made.url}#t={quote(name_of(row), safe='')}"):
        expect(page.locator("#detail h3")).to_have_text(row["query"])
        selected = page.locator("#rows [aria-selected=true]")
        expect(selected).to_have_attribute("data-id", name_of(row))
        expect(selected).to_be_in_viewport()
        page.evaluate("location.hash = '#t=one%2Fgone'")
        expect(page.locator("#detail")).to_contain_text("This page has no trajectory one/gone")


def test_hostile_text_is_text(tab: Page) -> None:
    assert tab.title() == HOSTILE
    expect(tab.locator("#rows .title").first).to_have_text(HOSTILE)
    tab.locator("#rows [role=option]").first.click()
    expect(tab.locator("#detail h3")).to_have_text(HOSTILE)
    expect(tab.locator("#detail .reply").first).to_have_text(HOSTILE)
    expect(tab.locator("#detail .film img").first).to_be_visible()
    assert tab.locator("img[onerror], b, script:not(#data)").count() == 1  # the page's own script


def test_a_script_that_is_not_the_page_s_own_does_not_run(browser: Browser, made: Made) -> None:
    page = browser.new_page()
    page.goto(made.url)
    page.evaluate("""() => {
      const added = document.createElement("script");
      added.textContent = "document.title = 3";
      document.body.append(added);
      const image = document.createElement("div");
      document.body.append(image);
      image.innerHTML = '<img src="data:," onerror="document.title = 4">';
    }""")
    page.wait_for_timeout(200)
    assert page.title() == HOSTILE
    page.close()


def test_keys_reach_everything(tab: Page, made: Made) -> None:
    rows = tab.locator("#rows")
    tab.get_by_role("button", name="Reset").focus()
    tab.keyboard.press("Tab")
    expect(rows).to_be_focused()
    for _ in range(2):
        tab.keyboard.press("ArrowDown")
    expect(rows).to_have_attribute("aria-activedescendant", "option-2")
    tab.keyboard.press("Enter")
    heading = tab.locator("#detail h3")
    expect(heading).to_have_text(made.rows[2]["query"])
    expect(heading).to_be_focused()
    tab.keyboard.press("Escape")
    expect(rows).to_be_focused()
    tab.keyboard.press("End")
    tab.keyboard.press(" ")
    expect(heading).to_have_text(made.rows[-1]["query"])
    tab.keyboard.press("Escape")
    tab.keyboard.press("Home")
    tab.keyboard.press("PageDown")
    tab.keyboard.press("ArrowUp")
    active = int(str(rows.get_attribute("aria-activedescendant")).removeprefix("option-"))
    assert 4 < active < 20
    expect(tab.locator(f"#option-{active}")).to_be_in_viewport()


def test_every_control_has_a_name(tab: Page) -> None:
    tab.locator("#rows [role=option]").nth(1).click()
    nameless = tab.evaluate("""() => [...document.querySelectorAll("input, select, button, a, img, svg[role=img]")]
      .filter((one) => !(one.labels?.length || one.getAttribute("aria-label") || one.alt || one.textContent.trim()))
      .map((one) => one.outerHTML.slice(0, 200))""")
    assert nameless == []


def test_print_has_the_open_trajectory_and_no_controls(tab: Page) -> None:
    tab.locator("#rows [role=option]").nth(1).click()
    expect(tab.locator("#detail .film img").first).to_be_visible()
    tab.emulate_media(media="print")
    for hidden in ("nav", "#filters", "#rows", "#keys", "#detail a"):
        expect(tab.locator(hidden).first).to_be_hidden()
    for shown in (".metrics", ".chart svg", ".card svg", "#detail .turn", "#detail .film img", "#settings"):
        expect(tab.locator(shown).first).to_be_visible()
    assert len(tab.pdf()) > 10_000


def test_print_without_an_open_trajectory_has_no_empty_part(tab: Page) -> None:
    tab.emulate_media(media="print")
    expect(tab.locator("#trajectories")).to_be_hidden()


def test_several_runs_are_told_apart(browser: Browser, several: Made) -> None:
    for page in opened(browser, several.url):
        source = page.locator("#filters select[name=source]")
        assert source.locator("optgroup").evaluate_all("groups => groups.map((group) => group.label)") == [
            "first",
            "second",
        ]
        source.select_option(value="1/after")
        assert count(page) == 3
        assert all(name.startswith("second/after/") for name in first_ids(page))
        expect(page.locator("#rows [role=option]").first).to_contain_text("second: after")
        legend = page.get_by_role("list", name="Lines of the charts")
        expect(legend).to_contain_text("first")
        expect(legend).to_contain_text("second")
        assert page.locator(".chart").first.locator("polyline").count() == 2


@pytest.mark.parametrize("width", [390, 800, 1280])
def test_nothing_is_wider_than_the_window(browser: Browser, made: Made, width: int) -> None:
    for page in opened(browser, made.url, viewport={"width": width, "height": 844}):
        page.locator("#rows [role=option]").nth(1).click()
        expect(page.locator("#detail .film img").first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
