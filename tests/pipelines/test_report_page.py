"""The report: one page that needs no network and runs nothing, whatever the names and numbers in it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from html.parser import HTMLParser

import pytest

from pipelines.report_page.figures import COLOURS, HEIGHT, WIDTH, Interval, Line, bar_chart, interval_chart, line_chart
from pipelines.report_page.page import Section, note, page, table

HOSTILE = """<script>alert("1")</script><img src='http://evil/x'> & 好评"""
NAN, INF = math.nan, math.inf
Chart = Callable[[], str]


class Outline(HTMLParser):
    """Collects the tags, attributes and text of a page, and whether its tags close in order."""

    VOID = ("meta", "line", "rect", "circle", "polyline")

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def intervals(name: str = "tnews") -> list[Interval]:
    return [
        Interval(row=name, series="base", value=50.0, low=40.0, high=60.0),
        Interval(row=name, series="adapted", value=55.5, low=48.0, high=63.0),
    ]


def numbers_in(svg: str) -> list[float]:
    """Return every coordinate of a drawing; a 'nan' or 'inf' among them is returned as such."""
    values = re.findall(r'(?:\b(?:x|y|cx|cy|x1|x2|y1|y2|width|height|points)=")([^"]*)"', svg)
    return [float(part) for value in values for part in re.split(r"[ ,]+", value) if part]


def assert_drawable(svg: str) -> None:
    assert Outline(svg).open == []
    assert all(math.isfinite(number) for number in numbers_in(svg))


def whole_page(name: str) -> str:
    figures = [
        line_chart(name, [Line(name=name, points=[(0, 3.0), (1, 2.5)])], name),
        bar_chart(name, [(name, 3.0), ("b", 5.0)], name),
        interval_chart(name, intervals(name), 0, 100, " %"),
    ]
    parts = [note(name), table([name, "n"], [[name, "3"]]), *figures]
    return page(name, [Section(title=name, parts=parts)])


@pytest.mark.parametrize("name", ["demo", HOSTILE])
def test_a_page_needs_no_network_and_runs_nothing(name: str) -> None:
    source = whole_page(name)
    outline = Outline(source)
    assert outline.open == []
    assert not {"script", "img", "link", "iframe", "object", "a", "base"} & set(outline.tags)
    assert not [key for key, _ in outline.attributes if key.startswith("on") or key in ("src", "href", "xlink:href", "action")]
    assert not [value for _, value in outline.attributes if value and "//" in value]
    assert "@import" not in source
    assert "url(" not in source
    assert "<script" not in source


def test_a_plain_page_names_no_address_at_all() -> None:
    assert not re.search(r"https?://", whole_page("demo"))


def test_names_are_escaped_wherever_they_stand() -> None:
    outline = Outline(whole_page(HOSTILE))
    assert sum(text.count(HOSTILE) for text in outline.text) >= 12
    assert "<script" not in whole_page(HOSTILE)


def test_a_page_says_its_language_and_character_set_and_keeps_its_order() -> None:
    source = page("runs", [Section(title="first", parts=["<p>1</p>"]), Section(title="second", parts=[])])
    assert source.startswith("<!doctype html>")
    assert '<meta charset="utf-8">' in source
    assert source.index("first") < source.index("<p>1</p>") < source.index("second")


def test_table_cells_are_escaped_and_all_there() -> None:
    outline = Outline(table(["<b>", "n"], [["<i>x</i>", "1"], ['"&"', "-2.5"]]))
    assert outline.text == ["<b>", "n", "<i>x</i>", "1", '"&"', "-2.5"]
    assert outline.tags.count("td") == 4
    assert [value for key, value in outline.attributes if key == "class"] == ["text", "number", "text", "number"]


def test_a_table_may_be_empty_and_so_may_a_cell() -> None:
    assert Outline(table([], [])).open == []
    assert Outline(table(["a"], [[""]])).tags.count("td") == 1


@pytest.mark.parametrize(
    "points",
    [[], [(NAN, 1.0)], [(1.0, NAN), (2.0, INF), (3.0, -INF)], [(INF, 2.0)]],
)
def test_a_line_chart_without_a_finite_point_says_so(points: list[tuple[float, float]]) -> None:
    chart = line_chart("loss", [Line(name="run", points=points)], "step")
    assert "no data" in chart
    assert_drawable(chart)
    assert "no data" in line_chart("loss", [], "step")


@pytest.mark.parametrize(
    "points",
    [
        [(3.0, 2.0)],
        [(0.0, 0.0)],
        [(1.0, 5.0), (2.0, 5.0), (3.0, 5.0)],
        [(7.0, 1.0), (7.0, 2.0)],
        [(0.0, -3.0), (1.0, -3.0)],
        [(0.0, 1e-9), (1.0, 2e-9)],
        [(0.0, 1e12), (1.0, -1e12)],
        [(0.0, 1.0), (1.0, NAN), (2.0, 0.5), (INF, 9.0)],
    ],
)
def test_a_line_chart_draws_within_its_frame(points: list[tuple[float, float]]) -> None:
    chart = line_chart("loss", [Line(name="run", points=points)], "step")
    assert_drawable(chart)
    finite = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    drawn = re.findall(r'points="([^"]*)"', chart)
    assert [len(line.split()) for line in drawn] == [len(finite)]
    for pair in drawn[0].split():
        x, y = map(float, pair.split(","))
        assert 0 <= x <= WIDTH
        assert 0 <= y <= HEIGHT


def test_higher_values_are_drawn_higher() -> None:
    chart = line_chart("loss", [Line(name="run", points=[(0.0, 1.0), (1.0, 4.0), (2.0, 2.0)])], "step")
    heights = [float(pair.split(",")[1]) for pair in re.findall(r'points="([^"]*)"', chart)[0].split()]
    assert heights[1] < heights[2] < heights[0]


def test_equal_values_are_drawn_clear_of_the_frame() -> None:
    flat, steep = (line_chart("loss", [Line(name="run", points=[(0.0, low), (1.0, 5.0)])], "step") for low in (5.0, 1.0))
    heights = [[float(pair.split(",")[1]) for pair in re.findall(r'points="([^"]*)"', chart)[0].split()] for chart in (flat, steep)]
    assert heights[0][0] == heights[0][1]
    assert heights[1][1] < heights[0][0] < heights[1][0]


def test_a_line_without_points_is_left_out_of_the_legend() -> None:
    chart = line_chart("loss", [Line(name="gone", points=[(0.0, NAN)]), Line(name="here", points=[(0.0, 1.0)])], "step")
    assert "here" in chart
    assert "gone" not in chart


def test_there_may_be_more_lines_than_colours() -> None:
    lines = [Line(name=f"run {i}", points=[(0.0, i), (1.0, i + 1)]) for i in range(len(COLOURS) + 3)]
    assert line_chart("loss", lines, "step").count("<polyline") == len(COLOURS) + 3


@pytest.mark.parametrize(
    "bars", [[], [("a", 0.0)], [("a", 3.0)], [("a", 2.0), ("b", 2.0)], [(str(i), float(i)) for i in range(119)], [("a", 1e-9)]]
)
def test_a_bar_chart_draws_a_bar_for_each_value(bars: list[tuple[str, float]]) -> None:
    chart = bar_chart("rows", bars, "rows")
    assert_drawable(chart)
    heights = [float(h) for h in re.findall(r'<rect [^>]*height="([^"]*)"', chart)]
    assert len(heights) == len(bars)
    assert all(0 <= height <= HEIGHT for height in heights)
    assert sorted(heights) == [height for _, height in sorted(zip([value for _, value in bars], heights, strict=True))]


@pytest.mark.parametrize("low_high", [(0.0, 100.0), (50.0, 50.0)])
def test_an_interval_chart_draws_an_interval_for_each_value(low_high: tuple[float, float]) -> None:
    items = [*intervals("tnews"), *intervals("eprstmt"), Interval(row="one", series="base", value=1.0, low=1.0, high=1.0)]
    chart = interval_chart("accuracy", items, *low_high, " %")
    assert_drawable(chart)
    assert chart.count("<circle") == 5
    assert_drawable(interval_chart("accuracy", [], 0, 100, " %"))
