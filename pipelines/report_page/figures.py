"""Figures as inline SVG: line charts, bars, intervals and points. No script, no network, nothing but text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipelines.report_page.page import escaped

WIDTH, HEIGHT = 560, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 14, 34
_MOST_NAMED = 20
COLOURS = ("#2563eb", "#dc2626", "#16a34a", "#9333ea", "#ea580c", "#0891b2", "#4b5563", "#be185d")


@dataclass(frozen=True, kw_only=True)
class Line:
    """A named series of (x, y) points; points that are not finite are left out."""

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


def line_chart(title: str, lines: Sequence[Line], x_label: str) -> str:
    """Draw lines over a common axis; the y axis fits the data."""
    shown = [
        Line(name=line.name, points=[(x, y) for x, y in line.points if math.isfinite(x) and math.isfinite(y)]) for line in lines
    ]
    shown = [line for line in shown if line.points]
    if not shown:
        return _figure(title, '<text x="60" y="60">no data</text>', [])
    xs = [x for line in shown for x, _ in line.points]
    ys = [y for line in shown for _, y in line.points]
    x_axis, y_axis = _scale(min(xs), max(xs), _LEFT, WIDTH - _RIGHT), _padded(ys)
    body = _axes(min(xs), max(xs), *_span(ys), x_label)
    for index, line in enumerate(shown):
        path = " ".join(f"{x_axis(x):.1f},{y_axis(y):.1f}" for x, y in line.points)
        colour = COLOURS[index % len(COLOURS)]
        body += f'<polyline fill="none" stroke="{colour}" stroke-width="1.6" points="{path}"/>'
        if len(line.points) == 1:
            x, y = line.points[0]
            body += f'<circle cx="{x_axis(x):.1f}" cy="{y_axis(y):.1f}" r="3" fill="{colour}"/>'
    return _figure(title, body, [line.name for line in shown])


def bar_chart(title: str, bars: Sequence[tuple[str, float]], y_label: str) -> str:
    """Draw one bar per (name, value), from 0; values that are negative or not finite are left out."""
    bars = [(name, value) for name, value in bars if math.isfinite(value) and value >= 0]
    top = max((value for _, value in bars), default=0.0) or 1.0
    y_axis = _scale(0.0, top, HEIGHT - _BOTTOM, _TOP)
    step = (WIDTH - _LEFT - _RIGHT) / max(len(bars), 1)
    body = f'<text x="4" y="{_TOP + 4}" class="tick">{escaped(y_label)}</text>' + _y_ticks(0.0, top)
    every = -(-len(bars) // 10)
    for index, (name, value) in enumerate(bars):
        x, y = _LEFT + index * step, y_axis(value)
        body += (
            f'<rect x="{x + 0.1 * step:.1f}" y="{y:.1f}" width="{0.8 * step:.1f}" height="{HEIGHT - _BOTTOM - y:.1f}" '
            f'fill="{COLOURS[0]}"><title>{escaped(name)}: {value:g}</title></rect>'
        )
        if index % every == 0:
            body += (
                f'<text x="{x + step / 2:.1f}" y="{HEIGHT - _BOTTOM + 14}" text-anchor="middle" class="tick">{escaped(name)}</text>'
            )
    return _figure(title, body, [])


def interval_chart(title: str, intervals: Sequence[Interval], low: float, high: float, unit: str) -> str:
    """Draw values with their intervals, a row per name, the series of a row under each other."""
    intervals = [item for item in intervals if all(map(math.isfinite, (item.value, item.low, item.high)))]
    series = list(dict.fromkeys(item.series for item in intervals))
    rows = list(dict.fromkeys(item.row for item in intervals))
    row_height = 14 * len(series) + 10
    height = _TOP + row_height * len(rows) + _BOTTOM
    left = 190
    x_axis = _scale(low, high, left, WIDTH - 30)
    body = ""
    for tick in _ticks(low, high):
        x = x_axis(tick)
        body += f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{height - _BOTTOM}" class="grid"/>'
        body += f'<text x="{x:.1f}" y="{height - _BOTTOM + 14}" text-anchor="middle" class="tick">{tick:g}{escaped(unit)}</text>'
    named: set[str] = set()
    for item in intervals:
        y = _TOP + rows.index(item.row) * row_height + 14 * series.index(item.series) + 10
        colour = COLOURS[series.index(item.series) % len(COLOURS)]
        body += (
            f'<line x1="{x_axis(item.low):.1f}" x2="{x_axis(item.high):.1f}" y1="{y}" y2="{y}" stroke="{colour}" '
            f'stroke-width="2"/><circle cx="{x_axis(item.value):.1f}" cy="{y}" r="4" fill="{colour}">'
            f"<title>{item.value:.1f} [{item.low:.1f}, {item.high:.1f}]</title></circle>"
        )
        if item.row not in named:
            named.add(item.row)
            body += f'<text x="{left - 8}" y="{y + 8}" text-anchor="end" class="tick">{escaped(item.row)}</text>'
    return _figure(title, body, series, height)


def scatter_chart(title: str, points: Sequence[Point], x_label: str) -> str:
    """Draw points with their intervals; both axes fit the data. Names are written beside a few points, and are titles of all."""
    points = [point for point in points if all(map(math.isfinite, (point.x, point.y, point.low, point.high)))]
    if not points:
        return _figure(title, '<text x="60" y="60">no data</text>', [])
    xs, ys = [point.x for point in points], [y for point in points for y in (point.low, point.y, point.high)]
    x_low, x_high = _span(xs)
    x_axis, y_axis = _scale(x_low, x_high, _LEFT, WIDTH - _RIGHT), _padded(ys)
    body = _axes(x_low, x_high, *_span(ys), x_label)
    for point in points:
        x, y, name = x_axis(point.x), y_axis(point.y), escaped(point.name)
        body += (
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y_axis(point.low):.1f}" y2="{y_axis(point.high):.1f}" stroke="{COLOURS[0]}" '
            f'stroke-width="1.2"/><circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{COLOURS[0]}">'
            f"<title>{name}: {point.x:.3f}, {point.y:.1f} [{point.low:.1f}, {point.high:.1f}]</title></circle>"
        )
        if len(points) <= _MOST_NAMED:
            anchor, shift = ("start", 6) if x < WIDTH / 2 else ("end", -6)
            body += f'<text x="{x + shift:.1f}" y="{y - 6:.1f}" text-anchor="{anchor}" class="tick">{name}</text>'
    return _figure(title, body, [])


def _figure(title: str, body: str, names: Sequence[str], height: float = HEIGHT) -> str:
    legend = "".join(
        f'<span><i style="background:{COLOURS[i % len(COLOURS)]}"></i>{escaped(name)}</span>' for i, name in enumerate(names)
    )
    return (
        f"<figure><figcaption>{escaped(title)}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" height="{height:g}" role="img">{body}</svg>'
        f'<div class="legend">{legend}</div></figure>'
    )


def _axes(x_low: float, x_high: float, y_low: float, y_high: float, x_label: str) -> str:
    x_axis = _scale(x_low, x_high, _LEFT, WIDTH - _RIGHT)
    body = _y_ticks(y_low, y_high)
    for tick in _ticks(x_low, x_high):
        body += f'<text x="{x_axis(tick):.1f}" y="{HEIGHT - _BOTTOM + 14}" text-anchor="middle" class="tick">{tick:g}</text>'
    return body + f'<text x="{WIDTH - _RIGHT}" y="{HEIGHT - 4}" text-anchor="end" class="tick">{escaped(x_label)}</text>'


def _y_ticks(low: float, high: float) -> str:
    y_axis = _scale(low, high, HEIGHT - _BOTTOM, _TOP)
    body = ""
    for tick in _ticks(low, high):
        y = y_axis(tick)
        body += f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
        body += f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" class="tick">{tick:g}</text>'
    return body


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or max(abs(high) * 0.05, 0.5)
    return low - margin, high + margin


def _padded(values: Sequence[float]) -> Callable[[float], float]:
    return _scale(*_span(values), HEIGHT - _BOTTOM, _TOP)


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    width = high - low or 1.0
    return lambda value: start + (value - low) / width * (end - start)


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` round numbers between low and high."""
    if high <= low:
        return [low]
    raw = (high - low) / count
    magnitude = 10 ** math.floor(math.log10(raw))
    step = min((m * magnitude for m in (1, 2, 2.5, 5, 10)), key=lambda s: abs(s - raw))
    first = math.ceil(low / step)
    return [round(k * step, 10) for k in range(first, math.floor(high / step) + 1)]
