"""The pages of a sweep, of compared runs and of a study in a browser: no error, filters, sorting, values on hover, narrow, dark."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urljoin, urlsplit

import pytest

from pipelines.tools.study import show
from pipelines.walk.compared_runs import compare_runs, conclude_sweep
from pipelines.walk.sweep_record import PointRecord, SweepRecord, settings_in
from tests.support.browser import Seen, browser, opened
from tests.support.command_line import composed
from tests.support.finished_runs import make_run

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator

GOLD, CHANCE = ["good", "bad"] * 20, "10" * 20
RIGHT = {"top1": 20, "large_margin": 28}
ROUTER = "model/router"
KINDS = ("sweep", "comparison", "study")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def pages(chromium: Browser, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the pages of 8 points: two tasks, routers and seeds, of which one failed and one was not reached."""
    root = tmp_path_factory.mktemp("compared")
    points: list[PointRecord] = []
    for task in ("eprstmt", "tnews"):
        for router in RIGHT:
            for seed in ("1", "2"):
                varied = [f"tasks=['{task}']", f"{ROUTER}={router}", f"seed={seed}"]
                name = ",".join(varied).replace("/", "").replace("['", "").replace("']", "")
                settings = settings_in(varied)
                points.append(PointRecord(number=len(points), name=name, run=f"sweep/{name}", settings=settings, is_done=True))
    points[2] = replace(points[2], is_done=False, error="seed: is <b>odd</b>")
    points[7] = replace(points[7], is_done=False)
    for number, point in enumerate(points):
        if point.is_done:
            right = RIGHT[point.settings[ROUTER]] + number
            bits = ("1" * right).ljust(len(GOLD), "0")
            base, own_seed = {"raw": CHANCE}, int(point.settings["seed"])
            make_run(root, point.run, {"raw": bits}, base=base, task=point.settings["tasks"], seed=own_seed, gold=GOLD)
    page_of_run = root / points[0].run / "report" / "report.html"
    page_of_run.parent.mkdir()
    page_of_run.write_text("<!doctype html><title>a run</title>", encoding="utf-8")
    record = SweepRecord(command="python -m pipelines.run -m", baseline=None, points=points, most=len(points))
    conclude_sweep(root / "sweep", record)
    compare_runs(composed("report", [f"run.dir={root}", "runs=[sweep]"]))
    show(composed("study", [f"run.dir={root}", "study.runs=[sweep]", f"output={root / 'study.md'}"]), None)
    return {"sweep": root / "sweep" / "index.html", "comparison": root / "comparison.html", "study": root / "study.html"}


@pytest.fixture(scope="module")
def wide(chromium: Browser, pages: dict[str, Path]) -> Iterator[Seen]:
    with opened(chromium, pages["sweep"].as_uri()) as seen:
        yield seen


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_opens_wide_and_narrow_and_dark_without_an_error_or_a_request(
    chromium: Browser, pages: dict[str, Path], kind: str
) -> None:
    for width, is_dark in ((1400, False), (420, True)):
        with opened(chromium, pages[kind].as_uri(), width=width, is_dark=is_dark) as seen:
            seen.page.locator("figure").first.scroll_into_view_if_needed()
            seen.page.wait_for_selector("figure canvas")
            ink, paper = (sum(seen.colour("body", name)) for name in ("color", "backgroundColor"))
            assert seen.overflow == 0
            assert (ink - paper if is_dark else paper - ink) > 450
            assert seen.page.locator("#points tbody tr").count() == 8
        assert (seen.problems, seen.foreign) == ([], [])


def shown(seen: Seen) -> list[str]:
    return list(seen.page.locator("#points tbody tr:visible").all_inner_texts())


def test_the_table_filters_by_values_and_by_words_and_says_how_many_are_left(wide: Seen) -> None:
    choices = wide.page.locator("#points select")
    names = [label.partition("\n")[0].strip() for label in wide.page.locator("#points label:has(select)").all_inner_texts()]
    assert [name.split()[0] for name in names] == ["status", "task", "router", "seed"]
    choices.nth(2).select_option("large_margin")
    assert [("large_margin" in row) for row in shown(wide)] == [True] * 4
    wide.page.fill("#points input", "tnews done")
    assert wide.page.locator("#points output").inner_text() == "1 of 8 rows"
    assert ["tnews" in row and "done" in row for row in shown(wide)] == [True]
    choices.nth(2).select_option("")
    wide.page.fill("#points input", "")
    assert len(shown(wide)) == 8


def column(table: Locator, at: int) -> list[str]:
    return [cell.strip() for cell in table.locator(f"tbody tr td:nth-child({at})").all_inner_texts()]


def test_the_table_sorts_by_values_with_intervals_by_mouse_and_keyboard(wide: Seen) -> None:
    table = wide.page.locator("#points table")
    heads = table.locator("th").all_inner_texts()
    at = heads.index("adapted") + 1
    head = table.locator("th").nth(at - 1)
    head.click()
    values = [float(cell.split()[0]) for cell in column(table, at) if cell != "-"]
    assert len(values) == 6
    assert values == sorted(values)
    head.focus()
    wide.page.keyboard.press("Enter")
    assert [float(cell.split()[0]) for cell in column(table, at) if cell != "-"] == sorted(values, reverse=True)
    assert head.get_attribute("aria-sort") == "descending"


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        (r"^accuracy by model/router", r"router=\w+, seed=\d, (eprstmt|tnews)\s*value:\s*[\d.]+ \["),
        (r"^tnews: accuracy with 95 % interval", r"router=\w+, seed=\d, (base|adapted)\s*value:\s*[\d.]+ \["),
    ],
)
def test_values_show_on_hover_and_stand_in_a_table_under_a_name(wide: Seen, caption: str, words: str) -> None:
    figure, box = wide.drawn(caption)
    tooltip = wide.page.locator(".bk-tooltip-content", has_text=re.compile(words)).first
    for place in [0.01 * step for step in range(15, 75)]:  # all in a row, or above and below each other, show
        wide.page.mouse.move(box["x"] + place * box["width"], box["y"] + 0.4 * place * box["height"])
        if tooltip.count():
            break
    tooltip.wait_for()
    named = figure.get_by_role("img").get_attribute("aria-labelledby")
    assert re.match(caption, wide.page.locator(f"#{named}").inner_text())
    figure.locator("summary").click()
    assert figure.locator("details table tbody tr").count() >= 6
    assert wide.problems == []


def test_points_that_have_a_page_are_links_to_it_and_a_failed_one_says_why(wide: Seen, pages: dict[str, Path]) -> None:
    links = wide.page.locator("#points td a")
    assert links.count() == 1
    target = unquote(urlsplit(urljoin(pages["sweep"].as_uri(), links.first.get_attribute("href") or "")).path)
    assert Path(target).read_text(encoding="utf-8").endswith("a run</title>")
    assert wide.page.locator("td.failed").get_attribute("title") == "seed: is <b>odd</b>"
    assert wide.page.locator("p.note", has_text="is <b>odd</b>").count() == 1
