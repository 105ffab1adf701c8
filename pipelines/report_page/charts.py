"""Charts for pages: lines, bars, intervals, points and heat maps.

Values show on hover; each chart comes with its numbers as a table. Values that are not finite are left out. Backgrounds are
transparent and axes grey, so that charts can be read on light and dark pages.
The only file that imports Bokeh.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bokeh.document import Document
from bokeh.embed import components
from bokeh.models import ColumnDataSource, DataRange1d, FactorRange, HoverTool, LinearColorMapper, Range1d
from bokeh.models.annotations import Label
from bokeh.plotting import figure
from bokeh.resources import Resources

from adapt.core.errors import shown as as_text

_HEIGHT, _ROW_HEIGHT, _FRAME = 260, 16, 70
_GREY = "#7a7a7a"
_MOST_NAMED = 20
_MOST_LISTED = 200
_MOST_WRITTEN, _MOST_WIDE = 80, 8  # cells, and columns, of a heat map that has its values written into it
_LONGEST_NAME = 36
_PALETTE = ("#ffffcc", "#ffeda0", "#fed976", "#feb24c", "#fd8d3c", "#fc4e2a", "#e31a1c", "#bd0026", "#800026")
_ITEMS = "const render_items = "  # what follows says which document and which place each chart has
_DOCUMENT, _PLACE = re.compile(r'"docid":"([^"]+)"'), re.compile(r'<div id="([^"]+)"')
_MODEL, _ROOT = re.compile(r'"id":"(p[0-9]+)"'), re.compile(r'"(p[0-9]+)"')
COLOURS = ("#3b82f6", "#ef4444", "#22a34a", "#a855f7", "#ea7317", "#0891b2", "#8b8b8b", "#d6336c")


@dataclass(frozen=True, kw_only=True)
class Line:
    """A named series of (x, y) points."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value with an interval around it, in a named row."""

    row: str
    series: str
    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Point:
    """A named point with an interval around its height."""

    name: str
    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A value with its interval under one choice of a setting; `name` says whose it is, `series` gives the colour."""

    choice: str
    series: str
    name: str
    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A drawing under a title, and its numbers as cells under a header."""

    title: str
    drawing: Any
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def line_chart(title: str, lines: Sequence[Line], x_label: str, marks: Sequence[Line] = ()) -> Chart:
    """Draw lines over a common axis; the y axis fits the data. `marks` are points in the colour of the line of their name."""
    shown = [found for line in lines if (found := _finite(line)).points]
    plot = _figure(x_label=x_label)
    for index, line in enumerate(shown):
        xs, ys = zip(*line.points, strict=True)
        source = ColumnDataSource({"x": xs, "y": ys, "name": [line.name] * len(xs)})
        colour = COLOURS[index % len(COLOURS)]
        plot.line("x", "y", source=source, color=colour, line_width=2, legend_label=as_text(line.name))
        if len(xs) == 1:
            plot.scatter("x", "y", source=source, color=colour, size=7)
    for mark in [found for line in marks if (found := _finite(line)).points]:
        place = next((i for i, line in enumerate(shown) if line.name == mark.name), len(shown))
        xs, ys = zip(*mark.points, strict=True)
        source = ColumnDataSource({"x": xs, "y": ys, "name": [f"{mark.name}, held out"] * len(xs)})
        plot.scatter("x", "y", source=source, color=COLOURS[place % len(COLOURS)], size=9, marker="diamond")
    _finish(plot, [("", "@name"), (x_label, "@x"), ("value", "@y{0.0000}")], is_empty=not shown)
    steps = sorted({x for line in shown for x, _ in line.points})
    values = [dict(line.points) for line in shown]
    rows = [[f"{x:g}", *[f"{known[x]:.4f}" if x in known else "-" for known in values]] for x in _thinned(steps)]
    return Chart(title=title, drawing=plot, header=(x_label, *[line.name for line in shown]), rows=rows)


def bar_chart(title: str, bars: Sequence[tuple[str, float]], y_label: str) -> Chart:
    """Draw one bar per (name, value), from 0; negative values are left out."""
    shown = [(name, value) for name, value in bars if math.isfinite(value) and value >= 0]
    names = _distinct([name for name, _ in shown])
    plot = _figure(x_label="", x_range=FactorRange(factors=names))
    source = ColumnDataSource({"name": names, "value": [value for _, value in shown]})
    if shown:
        plot.vbar(x="name", top="value", width=0.8, source=source, color=COLOURS[0])
        plot.y_range.start = 0
    plot.xaxis.major_label_orientation = 0.9
    if len(shown) > _MOST_NAMED:
        plot.xaxis.major_label_text_font_size = "6px"
    _finish(plot, [("", "@name"), (y_label, "@value")], is_empty=not shown)
    return Chart(title=title, drawing=plot, header=("", y_label), rows=[[name, f"{value:g}"] for name, value in shown])


def interval_chart(title: str, intervals: Sequence[Interval], low: float, high: float, unit: str) -> Chart:
    """Draw values with their intervals from left to right, a row per name and series."""
    shown = [item for item in intervals if all(map(math.isfinite, (item.value, item.low, item.high)))]
    series = list(dict.fromkeys(item.series for item in shown))
    by_row = {name: place for place, name in enumerate(dict.fromkeys(item.row for item in shown))}
    shown.sort(key=lambda item: by_row[item.row])
    places = [_short(f"{item.row} · {item.series}") for item in shown]
    factors = list(dict.fromkeys(reversed(places)))
    plot = figure(
        height=_FRAME + _ROW_HEIGHT * max(len(factors), 4), y_range=FactorRange(factors=factors),
        x_range=Range1d(start=low, end=low + 1.02 * max(high - low, 1e-9)), sizing_mode="stretch_width", tools="",
    )  # fmt: skip
    for index, name in enumerate(series):
        own = [(place, item) for place, item in zip(places, shown, strict=True) if item.series == name]
        source = ColumnDataSource(
            {
                "place": [place for place, _ in own],
                "value": [item.value for _, item in own],
                "low": [item.low for _, item in own],
                "high": [item.high for _, item in own],
                "row": [item.row for _, item in own],
                "series": [item.series for _, item in own],
            }
        )
        colour = COLOURS[index % len(COLOURS)]
        plot.segment(x0="low", x1="high", y0="place", y1="place", source=source, color=colour, line_width=2)
        plot.scatter(x="value", y="place", source=source, color=colour, size=8)
    _style(plot)
    if unit:
        plot.xaxis.axis_label = unit.strip()
    _finish(plot, [("", "@row, @series"), ("value", "@value{0.0} [@low{0.0}, @high{0.0}]")], is_empty=not shown)
    rows = [[item.row, item.series, f"{item.value:.1f}", f"{item.low:.1f} to {item.high:.1f}"] for item in shown]
    return Chart(title=title, drawing=plot, header=("", "", f"value{unit}", "95 % interval"), rows=rows)


def scatter_chart(title: str, points: Sequence[Point], x_label: str) -> Chart:
    """Draw points with their intervals; both axes fit the data. Names are written beside a few points."""
    shown = [point for point in points if all(map(math.isfinite, (point.x, point.y, point.low, point.high)))]
    plot = _figure(x_label=x_label)
    source = ColumnDataSource({key: [getattr(point, key) for point in shown] for key in ("name", "x", "y", "low", "high")})
    if shown:
        plot.segment(x0="x", x1="x", y0="low", y1="high", source=source, color=COLOURS[0], line_width=1.5)
        plot.scatter("x", "y", source=source, color=COLOURS[0], size=8)
    if len(shown) <= _MOST_NAMED:
        for point in shown:
            plot.add_layout(
                Label(x=point.x, y=point.y, text=_short(point.name), x_offset=6, text_font_size="10px", text_color=_GREY)
            )
    _finish(plot, [("", "@name"), (x_label, "@x{0.000}"), ("value", "@y{0.0} [@low{0.0}, @high{0.0}]")], is_empty=not shown)
    rows = [[point.name, f"{point.x:.3f}", f"{point.y:.1f}", f"{point.low:.1f} to {point.high:.1f}"] for point in shown]
    return Chart(title=title, drawing=plot, header=("", x_label, "value", "95 % interval"), rows=rows)


def choice_chart(title: str, choices: Sequence[Choice], setting: str, unit: str) -> Chart:
    """Draw values with their intervals over the choices of a setting, those of one choice side by side."""
    shown = [one for one in choices if all(map(math.isfinite, (one.value, one.low, one.high)))]
    factors = list(dict.fromkeys(_short(one.choice) for one in shown))
    series = list(dict.fromkeys(one.series for one in shown))
    plot = _figure(x_label=setting, x_range=FactorRange(factors=factors))
    plot.yaxis.axis_label = unit.strip()
    counts = {factor: sum(_short(one.choice) == factor for one in shown) for factor in factors}
    places: list[tuple[str, float]] = []
    for one in shown:
        factor = _short(one.choice)
        taken = sum(place[0] == factor for place in places)
        places.append((factor, (taken + 1) / (counts[factor] + 1) - 0.5))
    for index, name in enumerate(series):
        own = [(place, one) for place, one in zip(places, shown, strict=True) if one.series == name]
        columns = {key: [getattr(one, key) for _, one in own] for key in ("name", "series", "value", "low", "high")}
        source = ColumnDataSource({"x": [place for place, _ in own], **columns})
        colour = COLOURS[index % len(COLOURS)]
        plot.segment(x0="x", x1="x", y0="low", y1="high", source=source, color=colour, line_width=1.5)
        plot.scatter("x", "value", source=source, color=colour, size=8, legend_label=as_text(name))
    _finish(plot, [("", "@name, @series"), ("value", "@value{0.0} [@low{0.0}, @high{0.0}]")], is_empty=not shown)
    rows = [[one.choice, one.series, one.name, f"{one.value:.1f}", f"{one.low:.1f} to {one.high:.1f}"] for one in shown]
    return Chart(title=title, drawing=plot, header=(setting, "", "point", f"value{unit}", "95 % interval"), rows=rows)


def heat_map(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Sequence[Sequence[float]],
    labels: tuple[str, str],
    top: float | None = None,
) -> Chart:
    """Draw a matrix [rows, columns], the first row on top; `labels` name the rows' and the columns' axis.

    `top` is the value of the darkest colour, by default the largest one, so that maps beside each other can share a scale.
    """
    down, across = _distinct(rows), _distinct(columns)
    placed = [
        (down[r], across[c], value)
        for r, line in enumerate(cells)
        for c, value in enumerate(line)
        if math.isfinite(value)
    ]  # fmt: skip
    plot = figure(
        height=_FRAME + 40 + _ROW_HEIGHT * max(len(down), 6), x_range=FactorRange(factors=across),
        y_range=FactorRange(factors=down[::-1]), sizing_mode="stretch_width", tools="", x_axis_location="above",
    )  # fmt: skip
    source = ColumnDataSource({"row": [p[0] for p in placed], "column": [p[1] for p in placed], "value": [p[2] for p in placed]})
    top = top or max((value for *_, value in placed), default=1.0) or 1.0
    mapper = LinearColorMapper(palette=list(_PALETTE), low=0.0, high=top)
    plot.rect(
        x="column", y="row", width=1, height=1, source=source, fill_color={"field": "value", "transform": mapper}, line_color=None
    )
    if len(across) <= _MOST_WIDE and len(down) * len(across) <= _MOST_WRITTEN:
        source.data["text"] = [f"{p[2]:.0f}" if p[2] >= 100 else f"{p[2]:.3g}" for p in placed]
        source.data["ink"] = ["#ffffff" if p[2] > 0.55 * top else "#111827" for p in placed]
        plot.text(
            x="column", y="row", text="text", text_color="ink", source=source,
            text_align="center", text_baseline="middle", text_font_size="11px",
        )  # fmt: skip
    _style(plot)
    plot.grid.grid_line_color = None
    plot.xaxis.major_label_orientation = 0.9
    plot.yaxis.axis_label, plot.xaxis.axis_label = labels
    _finish(plot, [(labels[0], "@row"), (labels[1], "@column"), ("value", "@value{0.[00]}")], is_empty=not placed)
    largest = sorted(placed, key=lambda one: -one[2])[:_MOST_LISTED]
    return Chart(title=title, drawing=plot, header=(*labels, "value"), rows=[[r, c, f"{v:g}"] for r, c, v in largest])


def drawn(charts: Sequence[Chart]) -> tuple[str, list[str]]:
    """Return the script that draws charts, and a place for each in the page: the same ones for the same charts."""
    if not charts:
        return "", []
    page = Document()
    with page.models.freeze():  # else Bokeh would walk all charts once more with each that it takes in
        for chart in charts:
            page.add_root(chart.drawing)
    script, places = components(tuple(chart.drawing for chart in charts))
    return _with_fixed_ids(script, list(places))


def _with_fixed_ids(script: str, places: list[str]) -> tuple[str, list[str]]:
    """Count the ids up that Bokeh draws at random, and those that it counts on from what this process drew before."""
    head, start, items = script.partition(_ITEMS)
    names = dict.fromkeys([*_DOCUMENT.findall(items), *(_PLACE.findall("".join(places)))])
    for number, name in enumerate(names):
        head, items = head.replace(name, f"chart-{number}"), items.replace(name, f"chart-{number}")
        places = [place.replace(name, f"chart-{number}") for place in places]
    numbers = {name: f"p{number}" for number, name in enumerate(dict.fromkeys(_MODEL.findall(head)))}
    head = _MODEL.sub(lambda found: f'"id":"{numbers[found[1]]}"', head)
    items = _ROOT.sub(lambda found: f'"{numbers[found[1]]}"', items)
    return head + start + items, [_ROOT.sub(lambda found: f'"{numbers[found[1]]}"', place) for place in places]


def library() -> str:
    """Return the scripts that charts need, to be put into the page."""
    rendered: str = Resources(mode="inline", components=["bokeh"], minified=True).render()
    return rendered


def _figure(*, x_label: str, **options: Any) -> Any:
    plot = figure(height=_HEIGHT, sizing_mode="stretch_width", tools="", **options)
    plot.xaxis.axis_label = x_label
    _style(plot)
    return plot


def _style(plot: Any) -> None:
    plot.background_fill_alpha = 0.0
    plot.border_fill_alpha = 0.0
    plot.outline_line_color = None
    plot.toolbar.logo = None
    plot.toolbar_location = None
    plot.grid.grid_line_alpha = 0.25
    plot.grid.grid_line_color = _GREY
    for axis in plot.axis:
        axis.axis_label_text_color = axis.major_label_text_color = axis.axis_line_color = _GREY
        axis.major_tick_line_color = _GREY
        axis.minor_tick_line_color = None
        axis.axis_label_text_font_style = "normal"


def _finish(plot: Any, tooltips: list[tuple[str, str]], *, is_empty: bool) -> None:
    """Add what shows on hover and dress the legend; say so where there is nothing to draw."""
    if is_empty:
        for side in ("x_range", "y_range"):
            if isinstance(getattr(plot, side), DataRange1d):  # it would look for data
                setattr(plot, side, Range1d(start=0, end=1))
        plot.add_layout(Label(x=20, y=20, x_units="screen", y_units="screen", text="no data", text_color=_GREY))
    plot.add_tools(HoverTool(tooltips=tooltips))
    for legend in list(plot.legend):
        legend.background_fill_alpha = 0.0
        legend.border_line_color = None
        legend.label_text_color = _GREY
        legend.label_text_font_size = "10px"
        legend.click_policy = "hide"
        legend.orientation = "horizontal"
        legend.ncols = 2
        legend.padding = legend.spacing = 2
        plot.add_layout(legend, "below")


def _finite(line: Line) -> Line:
    return Line(name=line.name, points=[(x, y) for x, y in line.points if math.isfinite(x) and math.isfinite(y)])


def _thinned(steps: Sequence[float]) -> Sequence[float]:
    return steps[:: max(1, -(-len(steps) // _MOST_LISTED))]


def _short(name: str) -> str:
    """Return a name that fits beside a chart, by its end, where sweeps say what they vary."""
    name = as_text(name)
    return name if len(name) <= _LONGEST_NAME else "…" + name[1 - _LONGEST_NAME :]


def _distinct(names: Sequence[str]) -> list[str]:
    """Return short names, made distinct by a number where two are the same."""
    found: list[str] = []
    for name in map(_short, names):
        taken = found.count(name)
        found.append(name if not taken else f"{name} ({taken + 1})")
    return found
