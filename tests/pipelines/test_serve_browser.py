"""The page of `pipelines.serve` in a browser: rows go in, labels come out; what is refused is said; it asks nobody else."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("fastapi", reason="needs the extra `serve`")
pytest.importorskip("uvicorn", reason="needs the extra `serve`")

import uvicorn

from pipelines.config.locations import conf_dir
from pipelines.config.serve_settings import ServeConfig
from pipelines.serving.application import application
from pipelines.serving.batches import Batches
from pipelines.serving.server import listening
from pseudo_label.predictor import Prediction
from pseudo_label.tasks import TaskRow, load_task
from tests.support.browser import browser, opened

if TYPE_CHECKING:
    from playwright.sync_api import Browser

TASK = load_task("demo_reviews", [conf_dir() / "task"])
SETTINGS = ServeConfig(port=0, request_rows=2)


def by_length(rows: Sequence[TaskRow]) -> list[Prediction]:
    """Call rows of an even length Positive, with a probability of 0.8."""
    likeliest = ["Positive" if len("".join(row.texts.values())) % 2 == 0 else "Negative" for row in rows]
    return [
        Prediction(label=label, probabilities={name: 0.8 if name == label else 0.2 for name in TASK.label_words})
        for label in likeliest
    ]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def address(chromium: Browser) -> Iterator[str]:
    """Serve answers by `by_length` on a free port of this machine."""
    bound = listening(SETTINGS)
    with Batches(by_length, batch_rows=8, queue_rows=100) as batches:
        server = uvicorn.Server(uvicorn.Config(application(TASK, batches, SETTINGS), log_config=None, lifespan="off"))
        thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{bound.getsockname()[1]}/"
        server.should_exit = True
        thread.join(20)


@pytest.mark.parametrize(("width", "is_dark"), [(1400, False), (420, True)])
def test_pasted_rows_are_answered_in_order_and_fit(chromium: Browser, address: str, width: int, is_dark: bool) -> None:
    field = next(iter(TASK.fields))
    rows = ["even", "odd", json.dumps({field: "x" * 300}), "<img src=http://elsewhere/x>"]
    with opened(chromium, address, width=width, is_dark=is_dark) as seen:
        seen.page.get_by_label("Rows", exact=True).fill("\n".join(rows))
        seen.page.get_by_role("button", name="Label").click()
        seen.page.get_by_text("4 rows", exact=True).wait_for()
        items = seen.page.get_by_role("list", name="Answers").locator("li")
        said = [item.locator(".bar").first.inner_text().split() for item in items.all()]
        assert said == [[label, "80.0%"] for label in ("Positive", "Negative", "Positive", "Positive")]
        assert [item.locator("p").inner_text() for item in items.all()] == rows
        assert seen.overflow == 0
        assert (sum(seen.colour("body", "backgroundColor")) < 200) is is_dark
    assert (seen.problems, seen.foreign) == ([], [])


def test_a_refused_row_is_named_and_the_page_goes_on(chromium: Browser, address: str) -> None:
    with opened(chromium, address) as seen:
        seen.page.get_by_label("Rows", exact=True).fill('{"nothing": "of use"}')
        seen.page.get_by_role("button", name="Label").click()
        status = seen.page.locator("#status.bad")
        status.wait_for()
        assert "row 1" in status.inner_text()
        assert len(seen.problems) == 1, "the browser itself notes an answer that refuses"
        assert "422" in seen.problems[0]
        seen.page.get_by_label("Rows", exact=True).fill("odd")
        seen.page.keyboard.press("Tab")
        seen.page.keyboard.press("Enter")
        seen.page.get_by_text("1 row", exact=True).wait_for()
        assert seen.page.locator("#status.bad").count() == 0


def test_rows_of_a_file_are_put_into_the_page(chromium: Browser, address: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.txt"
    file.write_text("first\nsecond\n", encoding="utf-8")
    with opened(chromium, address) as seen:
        seen.page.get_by_label("Take rows from a file").set_input_files(file)
        seen.page.wait_for_function("document.querySelector('#rows').value === 'first\\nsecond\\n'")
        seen.page.get_by_role("button", name="Label").click()
        seen.page.get_by_text("2 rows", exact=True).wait_for()
    assert seen.problems == []
