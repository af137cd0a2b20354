"""The report page of searches that navigate in a real browser: films, trees, calls, judgements, filters."""

from collections.abc import Iterator

import pytest
from long_search_runs import write_long_search_run
from playwright.sync_api import Browser, Page, expect

from .test_report_browser import choose, count, opened
from .test_report_navigation import open_episode, page_of


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return page_of(write_long_search_run, tmp_path_factory.mktemp("long"))


@pytest.fixture
def tab(browser: Browser, url: str) -> Iterator[Page]:
    yield from opened(browser, url)


def test_an_episode_shows_its_films_their_trees_and_all_turns(tab: Page) -> None:
    open_episode(tab, "after", 2)  # the first query with 6 to spend
    detail = tab.locator("#detail")
    expect(detail.locator("header")).to_contain_text("✓ matched the right video")
    expect(detail.locator("header")).to_contain_text("4 of 6")
    films = detail.locator(".ranking").first.locator("tbody tr")
    expect(films).to_have_count(3)
    expect(films.nth(0)).to_contain_text("test-short")
    expect(films.nth(2)).to_contain_text("✓ matched")
    expect(detail.get_by_label("4 of 6 spent").locator("rect.read")).to_have_count(4)
    expect(detail.locator(".turn h4:has-text('Turn')")).to_have_count(7)
    trees = detail.locator("section.turn:has(h4:has-text('Navigated: '))")
    expect(trees).to_have_count(2)
    expect(trees.nth(0).locator("rect.true")).to_have_count(0)
    right = trees.nth(1)
    expect(right).to_contain_text("5 to spend")
    expect(right.locator("rect.read")).to_have_count(2)
    expect(right.locator("rect.predicted")).to_have_count(1)
    expect(right.locator(".reading li").filter(has_text="turn 5")).to_contain_text("has the answer")
    expect(detail.locator(".film img")).to_have_count(2)  # of the short video, and of a look
    expect(detail.locator(".rewards")).to_contain_text("verification")
    expect(detail.locator(".rewards")).to_contain_text("thrift")


def test_the_list_is_filtered_by_what_both_have(tab: Page) -> None:
    choose(tab, "budget", "6")
    assert count(tab) >= 4
    choose(tab, "outcome", "matched the right video")
    choose(tab, "sort", "spent most first")
    expect(tab.locator("#rows [role=option]").first).to_contain_text(" of 6")
    tab.get_by_role("button", name="Reset").click()
    tab.get_by_role("checkbox", name="wrong verdict").check()
    assert 0 < count(tab) < 11


def test_samples_of_a_group_stand_side_by_side(tab: Page) -> None:
    open_episode(tab, "training step 1", 0)
    tab.get_by_role("link", name="Compare group: 3 samples").click()
    expect(tab.locator(".sample")).to_have_count(3)
    expect(tab.locator(".sample").first).to_contain_text("Location")
    expect(tab.get_by_role("heading", name="Navigated")).to_have_count(0)


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window(browser: Browser, url: str, width: int) -> None:
    for page in opened(browser, url, viewport={"width": width, "height": 844}):
        open_episode(page, "after", 2)
        expect(page.locator("#detail .film img").first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
