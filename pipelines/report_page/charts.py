"""Charts for pages: lines, bars, intervals, points and heat maps.

Values show on hover; each chart comes with its numbers as a table. Values that are not finite are left out. A chart is drawn in the
browser by BokehJS (`drawing.py`, `charts.html`); the only file that knows where Bokeh's scripts are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import bokeh
from markupsafe import Markup

from adapt.core.errors import shown as as_text
from pipelines.report_page.drawing import Axis, Drawing, Glyph, Layer

_HEIGHT, _ROW_HEIGHT, _FRAME, _LEGEND_HEIGHT = 260, 16, 70, 26
_ROW_FILLED = 0.8  # of a row's height, between the series in it
_GREY = "#7a7a7a"
_MOST_NAMED = 20
_MOST_LISTED = 200
_MOST_WRITTEN, _MOST_WIDE = 80, 8  # cells, and columns, of a heat map that has its values written into it
_LONGEST_NAME = 40
_PALETTE = ("#ffffcc", "#ffeda0", "#fed976", "#feb24c", "#fd8d3c", "#fc4e2a", "#e31a1c", "#bd0026", "#800026")
_SCRIPTS = ("bokeh.min.js", "bokeh-api.min.js")
_AT = {"x": "x", "y": "y"}
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
    drawing: Drawing
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def line_chart(title: str, lines: Sequence[Line], x_label: str, marks: Sequence[Line] = ()) -> Chart:
    """Draw lines over a common axis; the y axis fits the data. `marks` are points in the colour of the line of their name."""
    shown = [found for line in lines if (found := _finite(line)).points]
    layers = []
    for index, line in enumerate(shown):
        colour = COLOURS[index % len(COLOURS)]
        style = {"line_color": colour, "line_width": 2}
        glyphs = [Glyph(kind="line", fields=_AT, values=style, legend=as_text(line.name))]
        if len(line.points) == 1:
            glyphs.append(Glyph(kind="scatter", fields=_AT, values=_dots(colour, 7)))
        layers.append(Layer(columns=_columns(line, line.name), glyphs=glyphs))
    for mark in [found for line in marks if (found := _finite(line)).points]:
        place = next((i for i, line in enumerate(shown) if line.name == mark.name), len(shown))
        style = _dots(COLOURS[place % len(COLOURS)], 9) | {"marker": "diamond"}
        glyphs = [Glyph(kind="scatter", fields=_AT, values=style)]
        layers.append(Layer(columns=_columns(mark, f"{mark.name}, held out"), glyphs=glyphs))
    tooltips = [("", "@name"), (x_label, "@x"), ("value", "@y{0.0000}")]
    drawing = Drawing(height=_HEIGHT, x=Axis(label=x_label), y=Axis(), layers=layers, tooltips=tooltips)
    steps = sorted({x for line in shown for x, _ in line.points})
    values = [dict(line.points) for line in shown]
    rows = [[f"{x:g}", *[f"{known[x]:.4f}" if x in known else "-" for known in values]] for x in _thinned(steps)]
    return Chart(title=title, drawing=drawing, header=(x_label, *[line.name for line in shown]), rows=rows)


def bar_chart(title: str, bars: Sequence[tuple[str, float]], y_label: str) -> Chart:
    """Draw one bar per (name, value), from 0; negative values are left out."""
    shown = [(name, value) for name, value in bars if math.isfinite(value) and value >= 0]
    names = _distinct([name for name, _ in shown])
    bar = Glyph(kind="vbar", fields={"x": "name", "top": "value"}, values={"width": 0.8, "color": COLOURS[0]})
    drawing = Drawing(
        height=_HEIGHT,
        x=Axis(names=names, is_turned=True, is_small=len(shown) > _MOST_NAMED),
        y=Axis(label=y_label, starts_at_zero=True),
        layers=[Layer(columns={"name": names, "value": [value for _, value in shown]}, glyphs=[bar])],
        tooltips=[("", "@name"), (y_label, "@value")],
    )
    return Chart(title=title, drawing=drawing, header=("", y_label), rows=[[name, f"{value:g}"] for name, value in shown])


def interval_chart(title: str, intervals: Sequence[Interval], low: float, high: float, unit: str) -> Chart:
    """Draw values with their intervals from left to right: a row for each name, in it the series below each other by colour."""
    shown = [item for item in intervals if all(map(math.isfinite, (item.value, item.low, item.high)))]
    series = list(dict.fromkeys(item.series for item in shown))
    by_row: dict[str, list[Interval]] = {}
    for item in shown:
        by_row.setdefault(item.row, []).append(item)
    shown = [item for items in by_row.values() for item in items]
    most = max(map(len, by_row.values()), default=1)
    places = [
        (name, ((len(items) - 1) / 2 - number) * _ROW_FILLED / most)
        for name, items in zip(_distinct(list(by_row)), by_row.values(), strict=True)
        for number in range(len(items))
    ]
    layers = []
    for index, name in enumerate(series):
        own = [(place, item) for place, item in zip(places, shown, strict=True) if item.series == name]
        columns = {key: [getattr(item, key) for _, item in own] for key in ("value", "low", "high", "row", "series")}
        bar = {"x0": "low", "x1": "high", "y0": "place", "y1": "place"}
        legend = as_text(name) if len(series) > 1 else None
        glyphs = _with_interval(bar, {"x": "value", "y": "place"}, COLOURS[index % len(COLOURS)], legend)
        layers.append(Layer(columns={"place": [place for place, _ in own], **columns}, glyphs=glyphs))
    drawing = Drawing(
        height=_FRAME + (_LEGEND_HEIGHT if len(series) > 1 else 0) + _ROW_HEIGHT * max(len(by_row) * most, 4),
        x=Axis(label=unit.strip(), ends=(low, low + 1.02 * max(high - low, 1e-9))),
        y=Axis(names=_distinct(list(by_row))[::-1]),
        layers=layers,
        tooltips=[("", "@row, @series"), ("value", "@value{0.0} [@low{0.0}, @high{0.0}]")],
        hover="hline",
    )
    rows = [[item.row, item.series, f"{item.value:.1f}", f"{item.low:.1f} to {item.high:.1f}"] for item in shown]
    return Chart(title=title, drawing=drawing, header=("", "", f"value{unit}", "95 % interval"), rows=rows)


def scatter_chart(title: str, points: Sequence[Point], x_label: str) -> Chart:
    """Draw points with their intervals; both axes fit the data. Names are written beside a few points."""
    shown = [point for point in points if all(map(math.isfinite, (point.x, point.y, point.low, point.high)))]
    columns = {key: [getattr(point, key) for point in shown] for key in ("name", "x", "y", "low", "high")}
    glyphs = _with_interval({"x0": "x", "x1": "x", "y0": "low", "y1": "high"}, _AT, COLOURS[0])
    if len(shown) <= _MOST_NAMED:
        columns["short"] = [_short(point.name) for point in shown]
        style = {"x_offset": 6, "text_font_size": "10px", "text_color": _GREY}
        glyphs.append(Glyph(kind="text", fields={**_AT, "text": "short"}, values=style, hovered=False))
    tooltips = [("", "@name"), (x_label, "@x{0.000}"), ("value", "@y{0.0} [@low{0.0}, @high{0.0}]")]
    layers = [Layer(columns=columns, glyphs=glyphs)]
    drawing = Drawing(height=_HEIGHT, x=Axis(label=x_label), y=Axis(), layers=layers, tooltips=tooltips)
    rows = [[point.name, f"{point.x:.3f}", f"{point.y:.1f}", f"{point.low:.1f} to {point.high:.1f}"] for point in shown]
    return Chart(title=title, drawing=drawing, header=("", x_label, "value", "95 % interval"), rows=rows)


def choice_chart(title: str, choices: Sequence[Choice], setting: str, unit: str) -> Chart:
    """Draw values with their intervals over the choices of a setting, those of one choice side by side."""
    shown = [one for one in choices if all(map(math.isfinite, (one.value, one.low, one.high)))]
    names = list(dict.fromkeys(_short(one.choice) for one in shown))
    counts = {name: sum(_short(one.choice) == name for one in shown) for name in names}
    places: list[tuple[str, float]] = []
    for one in shown:
        name = _short(one.choice)
        taken = sum(place[0] == name for place in places)
        places.append((name, (taken + 1) / (counts[name] + 1) - 0.5))
    layers = []
    for index, series in enumerate(dict.fromkeys(one.series for one in shown)):
        own = [(place, one) for place, one in zip(places, shown, strict=True) if one.series == series]
        columns = {key: [getattr(one, key) for _, one in own] for key in ("name", "series", "value", "low", "high")}
        bar = {"x0": "x", "x1": "x", "y0": "low", "y1": "high"}
        glyphs = _with_interval(bar, {"x": "x", "y": "value"}, COLOURS[index % len(COLOURS)], as_text(series))
        layers.append(Layer(columns={"x": [place for place, _ in own], **columns}, glyphs=glyphs))
    drawing = Drawing(
        height=_HEIGHT,
        x=Axis(label=setting, names=names),
        y=Axis(label=unit.strip()),
        layers=layers,
        tooltips=[("", "@name, @series"), ("value", "@value{0.0} [@low{0.0}, @high{0.0}]")],
        hover="vline",
    )
    rows = [[one.choice, one.series, one.name, f"{one.value:.1f}", f"{one.low:.1f} to {one.high:.1f}"] for one in shown]
    return Chart(title=title, drawing=drawing, header=(setting, "", "point", f"value{unit}", "95 % interval"), rows=rows)


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
    top = top or max((value for *_, value in placed), default=1.0) or 1.0
    at = {"x": "column", "y": "row"}
    style = {"width": 1, "height": 1, "line_color": None}
    glyphs = [Glyph(kind="rect", fields={**at, "fill_color": "value"}, values=style, shades=_PALETTE, top=top)]
    found: dict[str, list[str] | list[float]] = {
        "row": [p[0] for p in placed],
        "column": [p[1] for p in placed],
        "value": [p[2] for p in placed],
    }
    if len(across) <= _MOST_WIDE and len(down) * len(across) <= _MOST_WRITTEN:
        found["text"] = [f"{p[2]:.0f}" if p[2] >= 100 else f"{p[2]:.3g}" for p in placed]
        found["ink"] = ["#ffffff" if p[2] > 0.55 * top else "#111827" for p in placed]
        written = {"text_align": "center", "text_baseline": "middle", "text_font_size": "11px"}
        glyphs.append(Glyph(kind="text", fields={**at, "text": "text", "text_color": "ink"}, values=written, hovered=False))
    drawing = Drawing(
        height=_FRAME + 40 + _ROW_HEIGHT * max(len(down), 6),
        x=Axis(label=labels[1], names=across, is_turned=True),
        y=Axis(label=labels[0], names=down[::-1]),
        layers=[Layer(columns=found, glyphs=glyphs)],
        tooltips=[(labels[0], "@row"), (labels[1], "@column"), ("value", "@value{0.[00]}")],
        x_is_above=True,
        has_grid=False,
    )
    largest = sorted(placed, key=lambda one: -one[2])[:_MOST_LISTED]
    return Chart(title=title, drawing=drawing, header=(*labels, "value"), rows=[[r, c, f"{v:g}"] for r, c, v in largest])


def library() -> Markup:
    """Return the scripts that draw charts, to be put into the page."""
    folder = Path(bokeh.__file__).parent / "server" / "static" / "js"
    return Markup("\n").join(Markup("<script>{}</script>").format(Markup((folder / name).read_text("utf-8"))) for name in _SCRIPTS)


def _dots(colour: str, size: float) -> dict[str, object]:
    return {"color": colour, "size": size}


def _columns(line: Line, name: str) -> dict[str, Sequence[str] | Sequence[float]]:
    return {"x": [x for x, _ in line.points], "y": [y for _, y in line.points], "name": [name] * len(line.points)}


def _with_interval(bar: dict[str, str], dot: dict[str, str], colour: str, legend: str | None = None) -> list[Glyph]:
    """Return a bar from end to end, and a dot on it that shows values."""
    line = {"line_color": colour, "line_width": 2}
    return [
        Glyph(kind="segment", fields=bar, values=line, hovered=False),
        Glyph(kind="scatter", fields=dot, values=_dots(colour, 8), legend=legend),
    ]


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
