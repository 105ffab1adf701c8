"""The report: one page that needs no network, whatever the names and numbers in it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from typing import Any

import pytest
from markupsafe import Markup

from pipelines.report_page.charts import (
    COLOURS,
    Chart,
    Interval,
    Line,
    Point,
    bar_chart,
    heat_map,
    interval_chart,
    line_chart,
    scatter_chart,
)
from pipelines.report_page.page import Lead, Section, code, heading, note, page, table, tokens

HOSTILE = """<script>alert("1")</script></script><img src='http://evil/x' onerror=alert(1)> & {{ 7 * 7 }} 好评"""
UNSEEN = "a\x1b[31mb\u202ec\x00d\u2066"
INTERVALS = ["45.0 [40.9, 49.2]", "-5.5 [-14.5, +4.0] =", "46.0 [41.2, 51.0] (42.0, 50.0)", "46.0 [41.2, 51.0] (42.0 to 50.0)"]
NAN, INF = math.nan, math.inf


class Outline(HTMLParser):
    """Collects the tags, attributes and text of a page outside of scripts, and whether its tags close in order."""

    VOID = ("meta",)

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

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["script"]:
            self.text.append(data)


def intervals(name: str = "tnews") -> list[Interval]:
    return [
        Interval(row=name, series="base", value=50.0, low=40.0, high=60.0),
        Interval(row=name, series="adapted", value=55.5, low=48.0, high=63.0),
    ]


def whole_page(name: str) -> str:
    charts = [
        line_chart(name, [Line(name=name, points=[(0, 3.0), (1, 2.5)])], name),
        bar_chart(name, [(name, 3.0), ("b", 5.0)], name),
        interval_chart(name, intervals(name), 0, 100, " %"),
        scatter_chart(name, [Point(name=name, x=1, y=2, low=1, high=3)], name),
        heat_map(name, [name], [name, "b"], [[1.0, 2.0]], (name, "answer")),
    ]
    parts: list[Chart | Markup] = [note(name), heading(name), code(name), table([name, "n"], [[name, "3"]]), *charts]
    parts.append(tokens(name, [(name, "label"), (" ", "context")]))
    return page(name, [Section(title=name, parts=parts)], [name, Lead(sentence=name, details=[name])])


def sources(chart: Chart) -> list[dict[str, Any]]:
    """Return the columns that each layer of a chart draws."""
    return [dict(layer.columns) for layer in chart.drawing.layers]


def is_empty(chart: Chart) -> bool:
    return chart.drawing.is_empty


@pytest.mark.parametrize("name", ["demo", HOSTILE])
def test_a_page_asks_for_nothing_and_runs_only_its_own_scripts(name: str) -> None:
    source = whole_page(name)
    outline = Outline(source)
    assert outline.open == []
    assert not {"img", "link", "iframe", "object", "base", "form"} & set(outline.tags)
    assert not [key for key, _ in outline.attributes if key.startswith("on") or key in ("src", "action")]
    assert all(value is not None and value.startswith("#") for key, value in outline.attributes if key == "href")
    assert "default-src 'none'" in source
    assert "unsafe-eval" not in source
    assert outline.tags.count("script") == Outline(whole_page("demo")).tags.count("script")


def test_the_same_charts_make_the_same_page_whatever_was_drawn_before() -> None:
    def made() -> str:
        bars = [("p1001", 1.0), ('{"id":"p1"}', 2.0)]
        return page("runs", [Section(title="s", parts=[bar_chart("a", bars, "y"), bar_chart("b", bars, "y")])], [])

    first = made()
    assert made() == first
    assert "p1001" in first


def test_a_page_without_charts_holds_no_library_and_names_no_address() -> None:
    source = page("demo", [Section(title="one", parts=[note("nothing yet")])])
    assert len(source) < 6000
    assert not re.search(r"https?://", source)


def test_names_are_escaped_wherever_they_stand() -> None:
    shown = "".join(Outline(whole_page(HOSTILE)).text)
    assert shown.count(HOSTILE) >= 16
    assert HOSTILE.replace(" ", "␣") in shown
    assert "49 好评" not in shown


def test_control_characters_and_marks_of_direction_are_written_as_escapes() -> None:
    source = page(UNSEEN, [Section(title=UNSEEN, parts=[note(UNSEEN), table([UNSEEN], [[UNSEEN]])])], [UNSEEN])
    assert not re.search(r"[\x00\x1b\u202e\u2066]", source)
    assert "a\\x1b[31mb\\u202ec\\x00d\\u2066" in source


def test_a_page_says_its_language_and_character_set_and_keeps_its_order() -> None:
    sections = [Section(title="first", parts=[Markup("<p>1</p>")]), Section(title="second", parts=[])]
    source = page("runs", sections, ["lead"])
    assert source.startswith("<!doctype html>")
    assert '<meta charset="utf-8">' in source
    assert source.index("lead") < source.index("first") < source.index("<p>1</p>") < source.index("second")


def test_table_cells_are_escaped_and_all_there() -> None:
    outline = Outline(table(["<b>", "n"], [["<i>x</i>", "1"], ['"&"', "-2.5"], ["", ""]]))
    assert outline.text == ["<b>", "n", "<i>x</i>", "1", '"&"', "-2.5"]
    kinds = [value for key, value in outline.attributes if key == "class"]
    assert kinds == ["wide", "text short", "number", "text short", "number", "text short", "text short"]
    assert Outline(table([], [])).open == []


@pytest.mark.parametrize("points", [[], [(NAN, 1.0)], [(1.0, NAN), (2.0, INF), (3.0, -INF)], [(INF, 2.0)]])
def test_a_line_chart_without_a_finite_point_says_so(points: list[tuple[float, float]]) -> None:
    chart = line_chart("loss", [Line(name="gone", points=points)], "step")
    assert (is_empty(chart), chart.rows, chart.header) == (True, [], ("step",))
    assert is_empty(line_chart("loss", [], "step"))


def test_a_line_chart_draws_finite_points_and_marks_in_the_colour_of_their_line() -> None:
    lines = [
        Line(name="a", points=[(0.0, 1.0), (1.0, NAN), (2.0, 0.5), (INF, 9.0)]),
        Line(name="b", points=[(0.0, 3.0), (1.0, 2.0)]),
    ]
    chart = line_chart("loss", lines, "step", [Line(name="b", points=[(2.0, 1.5), (3.0, NAN)])])
    assert [(list(s["x"]), list(s["y"])) for s in sources(chart)] == [([0, 2], [1, 0.5]), ([0, 1], [3, 2]), ([2], [1.5])]
    colours = [
        glyph.values.get("color", glyph.values.get("line_color")) for layer in chart.drawing.layers for glyph in layer.glyphs
    ]
    assert colours == [COLOURS[0], COLOURS[1], COLOURS[1]]
    assert chart.header == ("step", "a", "b")
    assert chart.rows == [["0", "1.0000", "3.0000"], ["1", "-", "2.0000"], ["2", "0.5000", "-"]]


def test_there_may_be_more_lines_than_colours_and_long_runs_list_some_steps() -> None:
    lines = [Line(name=f"run {i}", points=[(float(x), i) for x in range(1000)]) for i in range(len(COLOURS) + 3)]
    chart = line_chart("loss", lines, "step")
    assert len(chart.drawing.layers) == len(COLOURS) + 3
    assert len(chart.rows) == 200


@pytest.mark.parametrize("bars", [[], [("a", 0.0)], [("a", 2.0), ("a", 3.0)], [(str(i), float(i)) for i in range(119)]])
def test_a_bar_chart_draws_a_bar_for_each_value(bars: list[tuple[str, float]]) -> None:
    chart = bar_chart("rows", [*bars, ("gone", NAN), ("gone", -1.0)], "rows")
    assert is_empty(chart) == (not bars)
    drawn = [(name, value) for s in sources(chart) for name, value in zip(s["name"], s["value"], strict=True)]
    assert [value for _, value in drawn] == [value for _, value in bars]
    assert len({name for name, _ in drawn}) == len(bars), "bars of one name stand side by side"


def test_an_interval_chart_puts_the_series_of_a_row_below_each_other() -> None:
    items: Sequence[Interval] = [intervals("b")[0], intervals("a")[0], intervals("b")[1], *intervals("c")[:0]]
    chart = interval_chart("accuracy", [*items, Interval(row="x", series="y", value=NAN, low=0, high=1)], 0, 100, " %")
    assert list(chart.drawing.y.names or []) == ["a", "b"], "the first row is on top"
    by_series = [layer.columns["place"] for layer in chart.drawing.layers]
    assert by_series == [[("b", 0.2), ("a", 0.0)], [("b", -0.2)]], "the first series is above the second"
    assert [layer.glyphs[1].legend for layer in chart.drawing.layers] == ["base", "adapted"]
    assert [row[:2] for row in chart.rows] == [["b", "base"], ["b", "adapted"], ["a", "base"]]
    assert is_empty(interval_chart("accuracy", [], 50, 50, ""))


def test_a_scatter_chart_leaves_out_what_is_not_finite() -> None:
    points = [Point(name=f"p{i}", x=0.1 * i, y=50 - i, low=47 - i, high=53 - i) for i in range(30)]
    chart = scatter_chart("accuracy", [*points, Point(name="gone", x=NAN, y=1, low=0, high=2)], "score")
    assert [row[0] for row in chart.rows] == [point.name for point in points]
    assert is_empty(scatter_chart("accuracy", [], "score"))


def test_a_heat_map_has_a_cell_for_each_value_and_lists_the_largest_first() -> None:
    chart = heat_map("confusion", ["a", "b"], ["a", "b"], [[3.0, 1.0], [NAN, 5.0]], ("class", "answer"))
    assert chart.rows == [["b", "b", "5"], ["a", "a", "3"], ["a", "b", "1"]]
    assert chart.drawing.y.names == ["b", "a"], "the first row is on top"


@pytest.mark.parametrize(
    "cell", ["3", "-2.5", "+1.5", "1,234", "61.2", "12.5 %", "585 MB", "30.1 to 54.3", "-5.9 to +1.4", "-", "1e-05", *INTERVALS]
)
def test_numbers_stand_to_the_right(cell: str) -> None:
    assert 'class="number"' in table(["n"], [[cell]])


@pytest.mark.parametrize("cell", ["0c715bdc61f7fbad", "2026-11-29T15:55:22", "3 of 4", "[4]", "1 row", ""])
def test_digests_dates_and_words_are_text(cell: str) -> None:
    assert 'class="text short"' in table(["n"], [[cell]])
    assert 'class="text"' in table(["n"], [[5 * f"{cell} and more"]]), "long ones may break"


def test_small_heat_maps_have_their_values_written_and_share_a_scale_where_asked() -> None:
    small = heat_map("m", ["a"], ["x", "y"], [[1.0, 1234.5]], ("row", "column"), 2000.0)
    assert sources(small)[-1]["text"] == ["1", "1234"]
    wide = heat_map("m", ["a"], [str(i) for i in range(9)], [[1.0] * 9], ("row", "column"))
    assert "text" not in sources(wide)[-1]
    assert small.drawing.layers[0].glyphs[0].top == 2000.0
