"""A headless Chromium for tests of pages: the system's own, driven by Playwright, cut off from every network.

    @pytest.fixture(scope="module")
    def chromium() -> Iterator[Browser]:
        with browser() as found:
            yield found

    with opened(chromium, file.as_uri(), width=420, is_dark=True) as seen:
        seen.page.click("th")
    assert seen.problems == []

Tests skip where Playwright or Chromium is missing (`apt-get install chromium`); nothing is downloaded. A module with such a fixture
must not call `asyncio.run` in the same process while it is open.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, FloatRect, Locator, Page, Route

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_HEIGHT = 900
_WAIT_MS = 60_000  # a test that waits for so long has failed


@dataclass
class Seen:
    """A page that is open; `problems` are errors of its console and its scripts, `foreign` requests to elsewhere, all refused."""

    page: Page
    problems: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)

    @property
    def overflow(self) -> int:
        """How many pixels the page is wider than its window."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))

    def drawn(self, caption: str) -> tuple[Locator, FloatRect]:
        """Scroll a chart into view by its caption, a pattern; return its figure, and the canvas's place once it is drawn."""
        found = self.page.locator("figure", has=self.page.locator("figcaption", has_text=re.compile(caption))).first
        found.scroll_into_view_if_needed()
        canvas = found.locator(".bk-Canvas").first
        canvas.wait_for()
        box = canvas.bounding_box()
        assert box is not None
        return found, box

    def colour(self, selector: str, name: str) -> tuple[int, int, int]:
        """Return a colour of the first element that matches, as it is computed."""
        script = "([selector, name]) => getComputedStyle(document.querySelector(selector))[name]"
        said: str = self.page.evaluate(script, [selector, name])
        red, green, blue = (int(part) for part in said.partition("(")[2].rstrip(")").split(",")[:3])
        return red, green, blue


@contextmanager
def browser() -> Iterator[Browser]:
    """Start a browser, or skip the test with what is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright (in the extra `dev`)")
    places = [place for name in _NAMES if (place := shutil.which(name)) is not None]
    if not places:
        pytest.skip("needs a Chromium on the PATH: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        # A sandbox needs rights that containers lack; pages here are this project's own, and reach nothing.
        found = driver.chromium.launch(executable_path=places[0], args=["--no-sandbox"])
        try:
            yield found
        finally:
            found.close()


@contextmanager
def opened(found: Browser, address: str, *, width: int = 1400, is_dark: bool = False) -> Iterator[Seen]:
    """Open a page in a window so wide; requests to any other host or file are noted and refused."""
    own = urlsplit(address)
    context = found.new_context(viewport={"width": width, "height": _HEIGHT}, color_scheme="dark" if is_dark else "light")
    context.set_default_timeout(_WAIT_MS)
    seen = Seen(page=context.new_page())

    def take(route: Route) -> None:
        asked = urlsplit(route.request.url)
        is_own = (asked.scheme, asked.netloc) == (own.scheme, own.netloc) and (own.scheme != "file" or asked.path == own.path)
        if is_own or asked.scheme in ("data", "blob"):
            route.continue_()
        else:
            seen.foreign.append(route.request.url)
            route.abort()

    context.route("**/*", take)
    seen.page.on("console", lambda said: seen.problems.append(said.text) if said.type == "error" else None)
    seen.page.on("pageerror", lambda error: seen.problems.append(str(error)))
    try:
        seen.page.goto(address)
        yield seen
    finally:
        context.close()
