"""The page of a run in a browser: no error, nothing asked of a network, values on hover, sorting, narrow, dark, on paper."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.browser import Seen, browser, opened

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator

PARTS = (
    "Accuracy", "Answers: demo_reviews", "Pseudo-labels: demo_reviews", "How prompts read: demo_reviews", "Training: pretrain",
    "Training: continue_pretrain/demo_reviews", "Forgetting", "Cost", "Command", "Settings that differ from the defaults",
)  # fmt: skip
MOST_BYTES = 5_000_000


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def report(chromium: Browser, smallest_run: Path) -> Path:
    return (smallest_run / "report" / "report.html").resolve()  # after the browser, without which no walk is needed


@pytest.fixture(scope="module")
def wide(chromium: Browser, report: Path) -> Iterator[Seen]:
    """Return the page in a wide and light window, opened once."""
    with opened(chromium, report.as_uri()) as seen:
        seen.page.wait_for_selector("figure canvas")
        yield seen


def test_a_page_opens_wide_without_an_error_or_a_request_and_fits(wide: Seen, report: Path) -> None:
    assert wide.overflow == 0
    assert sum(wide.colour("body", "backgroundColor")) - sum(wide.colour("body", "color")) > 450
    assert (wide.problems, wide.foreign) == ([], [])
    assert report.stat().st_size <= MOST_BYTES


def test_a_page_opens_narrow_and_dark_and_fits(chromium: Browser, report: Path) -> None:
    with opened(chromium, report.as_uri(), width=420, is_dark=True) as seen:
        seen.page.locator("figure").first.scroll_into_view_if_needed()
        seen.page.wait_for_selector("figure canvas")
        assert seen.overflow == 0
        assert sum(seen.colour("body", "color")) - sum(seen.colour("body", "backgroundColor")) > 450
    assert (seen.problems, seen.foreign) == ([], [])


def test_a_page_has_its_parts_and_each_can_be_reached_and_is_named(wide: Seen) -> None:
    titles = wide.page.locator("h2").all_inner_texts()
    assert [title for title in PARTS if title not in titles] == []
    for link in wide.page.locator("nav a").all():
        assert wide.page.locator(f"h2{link.get_attribute('href')}").count() == 1
    pictures = wide.page.get_by_role("img").all()
    names = [wide.page.locator(f"#{picture.get_attribute('aria-labelledby')}").inner_text() for picture in pictures]
    assert len(names) >= 20
    assert all(names)


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        (r"^Rows by class and answer", r"class:\s*(Positive|Negative)\s*answer:\s*(Positive|Negative)\s*value:\s*\d+"),
        (r"^Experts of MoE layer 1 of", r"expert:\s*\d+\s*step:\s*\d+\s*value:\s*[\d.]+"),
        (r"^Experts on demo_reviews, before and after", r"MoE layer:\s*layer \d+ (before|after)\s*expert:\s*\d+\s*value:\s*[\d.]+"),
        (r"^Selected rows by class", r"(Positive|Negative)\s*rows:\s*\d+"),
    ],
)
def test_values_show_on_hover(wide: Seen, caption: str, words: str) -> None:
    _, box = wide.drawn(caption)
    wide.page.mouse.move(0, 0)
    wide.page.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 0.7 * box["height"], steps=3)
    tooltip = wide.page.locator(".bk-tooltip-content", has_text=re.compile(words)).first
    tooltip.wait_for()  # Bokeh hangs it below the body, not below its figure
    assert wide.problems == []


def column(table: Locator, at: int) -> list[str]:
    return [cell.strip() for cell in table.locator(f"tbody tr td:nth-child({at})").all_inner_texts()]


def test_a_table_sorts_by_its_numbers_with_mouse_and_keyboard(wide: Seen) -> None:
    table = wide.page.locator("section", has=wide.page.locator("h2", has_text="Accuracy")).locator(":scope > .wide table")
    heads = table.locator("th").all_inner_texts()
    at = heads.index("accuracy, %") + 1
    head = table.locator("th").nth(at - 1)
    before = [float(value) for value in column(table, at)]
    head.click()
    assert [float(value) for value in column(table, at)] == sorted(before)
    assert head.get_attribute("aria-sort") == "ascending"
    head.focus()
    wide.page.keyboard.press("Enter")
    assert [float(value) for value in column(table, at)] == sorted(before, reverse=True)
    assert head.get_attribute("aria-sort") == "descending"
    table.locator("th").nth(heads.index("method")).click()
    methods = column(table, heads.index("method") + 1)
    assert methods == sorted(methods)


def test_a_printed_page_has_its_numbers_on_white_and_no_links(wide: Seen) -> None:
    numbers = wide.page.locator("details table").first
    assert not numbers.is_visible()
    wide.page.emulate_media(media="print", color_scheme="dark")
    assert numbers.is_visible()
    assert not wide.page.locator("nav").is_visible()
    assert wide.colour("body", "color") == (0, 0, 0)
    wide.page.emulate_media(media="screen", color_scheme="light")


def test_a_chart_is_drawn_when_it_comes_into_view_and_all_are_before_the_page_is_printed(chromium: Browser, report: Path) -> None:
    with opened(chromium, report.as_uri()) as seen:
        seen.page.wait_for_selector("figure canvas")
        places, left = seen.page.locator("[data-chart]"), seen.page.locator("[data-chart]:empty")
        assert 0 < left.count() < places.count()
        last = places.last
        assert last.locator("canvas").count() == 0
        last.scroll_into_view_if_needed()
        last.locator("canvas").first.wait_for()
        assert left.count() > 0
        assert len(seen.page.pdf()) > 50_000
        assert left.count() == 0
    assert seen.problems == []


def test_tokens_of_a_prompt_have_borders_and_labels_stand_out(wide: Seen) -> None:
    lines = wide.page.locator("p.tokens").all_inner_texts()
    assert any(line.startswith("label Positive:") for line in lines)
    assert wide.page.locator("p.tokens").first.locator(".token").count() > 5
    assert wide.colour(".token.label", "backgroundColor") != wide.colour("body", "backgroundColor")
