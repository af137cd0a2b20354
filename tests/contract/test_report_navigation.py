"""The report page of a run of navigation in a real browser: tree, calls, spend, looks, filters, groups."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from navigate_runs import write_navigation_run
from playwright.sync_api import Browser, Page, expect

from pipelines.evaluation.report import write_run_report
from vsr1.config import Config
from vsr1.report.metric_rows import DASH

from .test_report_browser import choose, count, opened


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return page_of(write_navigation_run, tmp_path_factory.mktemp("navigate"))


def page_of(write: Callable[[Path], Config], folder: Path) -> str:
    """Return the address of the report page of a run that is written into a folder."""
    with ThreadPoolExecutor(1) as thread:  # the browser's event loop runs in this one
        config = thread.submit(write, folder).result()
    return write_run_report([config.run_dir]).as_uri()


@pytest.fixture
def tab(browser: Browser, url: str) -> Iterator[Page]:
    yield from opened(browser, url)


def open_episode(page: Page, source: str, place: int) -> None:
    choose(page, "source", source)
    page.locator("#rows [role=option]").nth(place).click()


def test_an_episode_opens_with_tree_path_and_spend(tab: Page) -> None:
    open_episode(tab, "after", 1)  # the first question under the second budget
    detail = tab.locator("#detail")
    expect(detail.locator("header")).to_contain_text("✓ right answer")
    expect(detail.locator("header")).to_contain_text("5 of 6")
    expect(detail.locator(".axis").first.locator("rect.read")).to_have_count(2)
    expect(detail.locator(".axis").first.locator("rect.true")).to_have_count(1)
    assert detail.locator(".axis").first.locator("rect.named").count() >= 2
    read = detail.locator(".reading li")
    expect(read.filter(has_text="turn 2")).to_have_count(1)
    expect(read.filter(has_text="turn 3")).to_contain_text("turn 4")
    expect(read.filter(has_text="turn 3")).to_contain_text("has the answer")
    expect(read.first).to_contain_text(f"1 0.0{DASH}")
    expect(detail.get_by_label("5 of 6 spent").locator("rect.read")).to_have_count(5)
    turns = detail.locator(".turn h4:has-text('Turn')")
    expect(turns).to_have_count(6)
    expect(turns.nth(0)).to_contain_text("find(a ring)")
    expect(turns.nth(0)).to_contain_text("cost 1, 5 left")
    expect(detail.get_by_text("Named: ")).to_have_count(1)
    image = detail.locator(".film img")
    expect(image).to_have_count(1)
    assert image.evaluate("async image => { await image.decode(); return image.naturalWidth; }") == 256
    expect(detail.locator(".tag-tool").first).to_have_text("<tool>")
    expect(detail.locator(".rewards")).to_contain_text("thrift")


def test_mistakes_stand_out_and_groups_side_by_side(tab: Page) -> None:
    open_episode(tab, "training step 1", 2)
    for status in ("repeat", "bad node", "closed node", "abstained"):
        expect(tab.locator("#detail .turn .badge").filter(has_text=status)).to_have_count(1)
    tab.get_by_role("link", name="Compare group: 3 samples").click()
    expect(tab.locator(".sample")).to_have_count(3)
    expect(tab.locator(".sample").first).to_contain_text("Location")


def test_the_list_is_filtered_and_sorted_by_what_navigation_has(tab: Page) -> None:
    choose(tab, "outcome", "right answer")
    assert count(tab) == 9 + 2
    choose(tab, "budget", "16")
    assert count(tab) == 3
    tab.get_by_role("button", name="Reset").click()
    choose(tab, "sort", "spent most first")
    expect(tab.locator("#rows [role=option]").first).to_contain_text("5 of ")
    assert tab.locator("#filters [name=refined], #filters [value=gain]").count() == 0


def test_accuracy_by_budget_is_a_table_and_a_chart(tab: Page) -> None:
    table = tab.get_by_role("region", name="Figures by budget")
    after = table.locator("tbody").nth(1).locator("tr")
    expect(after).to_have_count(1 + 3)
    expect(after.nth(1)).to_contain_text(f"100.0{DASH}100.0")
    chart = tab.get_by_role("img", name="Accuracy by budget")
    expect(chart.locator("polyline")).to_have_count(2)
    expect(chart.locator("text").filter(has_text="16")).to_have_count(1)


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window(browser: Browser, url: str, width: int) -> None:
    for page in opened(browser, url, viewport={"width": width, "height": 844}):
        open_episode(page, "after", 2)
        expect(page.locator("#detail .film img").first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_it_prints(tab: Page) -> None:
    open_episode(tab, "after", 1)
    tab.emulate_media(media="print")
    expect(tab.locator("#detail .reading")).to_be_visible()
    expect(tab.locator("#filters")).to_be_hidden()
